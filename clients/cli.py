"""The hospital's commands: `crossprobe site`, `worker`, `ledger` and `predict`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from common.errors import RunError

RAW = argparse.RawDescriptionHelpFormatter


def main(command: str, arguments: list[str]) -> int:
    """Run one of the hospital's commands and return its exit code."""
    if command == "site":
        from clients.governance import cli as site_cli

        return site_cli.main(arguments)
    if command == "predict":
        return _predict(arguments)
    from clients.node import cli as node_cli

    return node_cli.worker(arguments) if command == "worker" else node_cli.ledger(arguments)


def _predict(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="crossprobe predict",
        description=(
            "Segment PNG images with a released model. Writes OUT/masks (0 and 255), OUT/confidence\n"
            "(0 undecided to 255 certain) and OUT/overlays, named and sized as the images."
        ),
        formatter_class=RAW,
        epilog=(
            "examples:\n  crossprobe predict --model runs/demo --images scans/ --out segmented/\n"
            "  crossprobe predict --model release-of-demo --images scans/ --out segmented/ --spacing-mm 0.12"
        ),
    )
    parser.add_argument(
        "--model", type=Path, required=True, metavar="RELEASE", help="a release, or the finished run that holds it"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of 8- or 16-bit grey PNGs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--spacing-mm", type=float, help="side of the images' pixels, for studies with a spacing")
    chosen = parser.parse_args(arguments)

    from clients.predict import load_model, predict_folder
    from common.release import find_release
    from common.study import read_study_of_run

    release = find_release(chosen.model)
    study = read_study_of_run(release)
    if study.image.geometry == "spacing" and chosen.spacing_mm is None:
        raise RunError("this model works on a mm grid: give the side of the images' pixels with --spacing-mm.")
    model = load_model(release, study)

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("segmenting", total=None)
        problems = predict_folder(
            model,
            chosen.images,
            chosen.out,
            spacing_mm=chosen.spacing_mm,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"written to {chosen.out}: masks/, confidence/, overlays/")
    return 1 if problems else 0
