"""The hospital's commands: `crossprobe site check` and `crossprobe predict`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

RAW = argparse.RawDescriptionHelpFormatter


def main(command: str, arguments: list[str]) -> int:
    """Run one of this module's commands and return its exit code."""
    return _site(arguments) if command == "site" else _predict(arguments)


def _site(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="crossprobe site",
        description="Look after a hospital's site folder.",
        formatter_class=RAW,
        epilog="examples:\n  crossprobe site check /data/our-site\n  crossprobe site check /data/our-site --json",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="report everything that is wrong with a site folder")
    check.add_argument("folder", type=Path, help="folder with site.yaml and manifest.csv")
    check.add_argument("--json", action="store_true", help="print findings for machines")
    chosen = parser.parse_args(arguments)

    from clients.manifest import SPLITS
    from clients.site import check_site

    site, findings = check_site(chosen.folder)
    if chosen.json:
        print(json.dumps({"ok": not findings, "findings": [asdict(finding) for finding in findings]}, indent=1))
        return 1 if findings else 0
    for finding in findings:
        print(f"{finding.code}: {finding.where}: {finding.message}. {finding.remedy}.", file=sys.stderr)
    if site is None:
        print(f"{len(findings)} finding(s): mend them, then check again", file=sys.stderr)
        return 1
    console = Console()
    console.print(f"{site.config.name}: a {site.config.role} site without findings")
    for split in SPLITS:
        labelled = len(site.patients(split, labelled=True))
        patients, frames = len(site.patients(split)), len(site.frames_of(split))
        console.print(f"  {split:9}  {patients:5} patients  {frames:6} frames  {labelled:5} patients with masks")
    return 0


def _predict(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="crossprobe predict",
        description=(
            "Segment PNG images with a run's released model. Writes OUT/masks (0 and 255), OUT/confidence\n"
            "(0 undecided to 255 certain) and OUT/overlays, named and sized as the images."
        ),
        formatter_class=RAW,
        epilog=(
            "examples:\n  crossprobe predict --model runs/demo --images scans/ --out segmented/\n"
            "  crossprobe predict --model runs/demo --images scans/ --out segmented/ --spacing-mm 0.12"
        ),
    )
    parser.add_argument("--model", type=Path, required=True, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--images", type=Path, required=True, help="folder of 8- or 16-bit grey PNGs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--spacing-mm", type=float, help="side of the images' pixels, for studies with a spacing")
    chosen = parser.parse_args(arguments)

    from clients.predict import load_model, predict_folder
    from common.study import read_study_of_run

    model = load_model(chosen.model, read_study_of_run(chosen.model))

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
