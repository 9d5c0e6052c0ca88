"""The hospital's commands: `crossprobe site`, `worker`, `ledger` and `predict`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from clients.governance.cli import app as site
from clients.node.cli import app as node
from common.errors import RunError
from common.options import commands, examples, finite

app = commands()
app.add_typer(site, name="site")
app.add_typer(node)


@app.command(
    epilog=examples(
        "crossprobe predict --model runs/demo --images scans/ --out segmented/ --spacing-mm 0.12",
        "crossprobe predict --model runs/busbra --images scans/ --out segmented/",
    )
)
def predict(
    model: Annotated[Path, typer.Option(metavar="RUN", help="folder of a finished run")],
    images: Annotated[Path, typer.Option(metavar="DIR", help="folder of 8- or 16-bit grey PNGs")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to write to")],
    spacing_mm: Annotated[
        float | None,
        typer.Option(min=0.02, max=2.0, callback=finite, help="side of a pixel, for studies with a spacing"),
    ] = None,
) -> None:
    """Segment images with a trained model.

    Writes OUT/masks (0 and 255), OUT/confidence (0 undecided to 255 certain) and OUT/overlays, named and sized as the
    PNG images.
    """
    from clients.predict import load_model, predict_folder
    from common.study import read_study_of_run

    study = read_study_of_run(model)
    if study.image.geometry == "spacing" and spacing_mm is None:
        raise RunError("this model works on a mm grid: give the side of the images' pixels with --spacing-mm.")
    trained = load_model(model, study)

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("segmenting", total=None)
        problems = predict_folder(
            trained,
            images,
            out,
            spacing_mm=spacing_mm,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"written to {out}: masks/, confidence/, overlays/")
    if problems:
        raise typer.Exit(1)
