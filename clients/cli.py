"""The hospital's commands: `crossprobe site`, `worker`, `ledger` and `predict`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

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
            "Segment images and cine loops (PNG, JPEG, TIFF, DICOM, NIfTI, MP4 and others) with a released model.\n"
            "Writes OUT/masks (0 and 255), OUT/confidence (0 undecided to 255 certain) and OUT/overlays, named and\n"
            "sized as the images."
        ),
        formatter_class=RAW,
        epilog=(
            "examples:\n  crossprobe predict --model runs/demo --images scans/ --out segmented/\n"
            "  crossprobe predict --model runs/demo --images scans/ --out segmented/ --spacing-mm 0.12"
        ),
    )
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="a release, or the finished run that holds it"
    )
    parser.add_argument(
        "--images", type=Path, required=True, help="a file, a folder, or a CSV with `image` and `spacing_mm`"
    )
    parser.add_argument("--coordinator-key", type=Path, metavar="FILE", help="use only a release that this key signed")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--spacing-mm", type=float, help="side of a pixel, where neither file nor CSV tells it")
    chosen = parser.parse_args(arguments)

    from clients.predict import predict
    from clients.released import load_model
    from common.signing import read_public_key

    model = load_model(chosen.model, read_public_key(chosen.coordinator_key) if chosen.coordinator_key else None)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("segmenting", total=None)
        outcome = predict(
            model,
            chosen.images,
            chosen.out,
            spacing_mm=chosen.spacing_mm,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for problem in outcome.problems:
        print(problem, file=sys.stderr)
    print(f"{outcome.written} images segmented, written to {chosen.out}: masks/, confidence/, overlays/")
    if outcome.problems:
        print(f"{len(outcome.problems)} files were NOT segmented, or not whole; they are named above", file=sys.stderr)
    return 1 if outcome.problems else 0
