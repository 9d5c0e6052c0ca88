"""The command `crossprobe export`: a release as an ONNX file."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.errors import RunError
from common.options import Json, OneNetwork, Overwrite, commands, examples, number

app = commands()


@app.command(
    epilog=examples(
        "crossprobe export runs/demo --out model.onnx",
        "crossprobe export runs/demo --out live.onnx --network target_branch --no-flips --bench",
        "crossprobe export runs/demo --out model.onnx --int8 --images scans/ --spacing-mm 0.12 --bench",
        note="Needs the optional packages: pip install -c constraints.txt -e '.[export]'",
    )
)
def export(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="a release, or the finished run that holds it")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="the ONNX file to write; its card goes beside it")],
    network: OneNetwork = None,
    flips: Annotated[
        bool,
        typer.Option("--flips/--no-flips", help="average with the mirrored image where the study does; half as fast"),
    ] = True,
    images: Annotated[
        Path | None, typer.Option(help="images to compare on and to calibrate with: file, folder or CSV, as in predict")
    ] = None,
    spacing_mm: Annotated[
        float | None, typer.Option(parser=number, help="side of their pixels in mm, where nothing else tells it")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="write OUT's name with .int8.onnx too; needs --images")] = False,
    bench: Annotated[bool, typer.Option("--bench", help="time it beside torch, on frames of 256 x 256")] = False,
    frames: Annotated[int, typer.Option(min=10, max=10_000, help="frames to time for --bench")] = 50,
    threads: Annotated[int, typer.Option(min=1, max=256, help="threads to time on for --bench")] = 2,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a released model as one ONNX file: normalisation, both branches and head, or one network alone.

    It takes any batch and any image size.

    It is compared with torch, to 1e-4 in each pixel's probability, before it is written. Study, hashes, spacing, limits
    and the model card stand in its metadata.
    """
    if not out.name:
        raise typer.BadParameter("--out needs a file, such as model.onnx")
    small = out.with_name(f"{out.stem}.int8.onnx") if int8 else None
    if int8 and images is None:
        raise typer.BadParameter("--int8 needs --images: the ranges of the values are measured on them")
    try:
        from clients.export.bench import LIVE_FRAMES_PER_S
        from clients.export.bench import bench as time_it
        from clients.export.export import card_of
        from clients.export.export import export as write
        from clients.export.pictures import read_pictures
        from clients.export.quantise import quantise
    except ModuleNotFoundError as error:
        raise RunError(
            f"expected the package {error.name}, found none. Install it: pip install -c constraints.txt -e '.[export]'"
        ) from None
    from clients.released import load_model

    there = [str(file) for file in (out, card_of(out), small) if file is not None and file.exists()]
    if there and not overwrite:
        raise RunError(f"{', '.join(there)} is there already. Choose another --out, or give --overwrite.")
    model = load_model(release, network=network)
    pictures = read_pictures(model.study, images, spacing_mm) if images is not None else []
    exported = write(model, release, out, flips=flips, pictures=pictures)
    int8_dice = quantise(out, small, pictures) if small is not None else None
    timings = []
    if bench:
        timings = time_it(model, out, small, flips=flips, frames=frames, threads=threads)
    if as_json:
        found = {"file": str(out), **asdict(exported), "int8": small and str(small), "int8_dice": int8_dice}
        print(json.dumps(found | {"timings": [asdict(timing) for timing in timings]}, indent=1))
        return
    print(f"wrote {out}, within {exported.largest_difference:.1e} of torch, and {card_of(out)}")
    if exported.dice_predict is not None:
        print(f"Dice of its masks with those of `crossprobe predict`, cut into tiles: {exported.dice_predict:.4f}")
    if small is not None:
        print(f"wrote {small}; Dice of its masks with those in float32, on every second image: {int8_dice:.4f}")
    if timings:
        table = Table("256 x 256", "frames/s", "times predict", "p50 ms", "p95 ms", "p99 ms", "CPU ms")
        for timing in timings:
            table.add_row(*map(str, asdict(timing).values()))
        Console(file=sys.stdout).print(table)
        print(f"on {threads} threads; p99 of fewer than 100 frames is all but the slowest one")
        if max(timing.frames_per_s for timing in timings) < LIVE_FRAMES_PER_S:
            print(f"too slow for live video here: nothing reached {LIVE_FRAMES_PER_S} frames a second")
