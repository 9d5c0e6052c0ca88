"""The coordinator's commands: `crossprobe study` and `crossprobe report`."""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

RAW = argparse.RawDescriptionHelpFormatter


def main(command: str, arguments: list[str]) -> int:
    """Run one of this module's commands and return its exit code."""
    return _study(arguments) if command == "study" else _report(arguments)


def _study(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="crossprobe study",
        description="Look at a study before anybody runs it.",
        formatter_class=RAW,
        epilog=(
            "examples:\n  crossprobe study check configs/demo.yaml\n  crossprobe study check configs/demo.yaml --json"
        ),
    )
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="validate a study; print its hash and its stages")
    check.add_argument("study", type=Path, help="study file (YAML)")
    check.add_argument("--json", action="store_true", help="print the resolved study for machines")
    chosen = parser.parse_args(arguments)

    from common.study import load_study

    study = load_study(chosen.study)
    if chosen.json:
        print(json.dumps({"hash": study.hash(), "study": json.loads(study.resolved())}, indent=1))
        return 0
    table = Table(title=f"{study.name}, hash {study.hash()[:16]}")
    for column in ("stage", "rounds", "source sites", "target sites"):
        table.add_column(column)
    for stage in study.stages:
        cells = [f"{task.task} -> {', '.join(task.trains)}" if task else "-" for task in (stage.source, stage.target)]
        table.add_row(stage.name, str(stage.rounds), *cells)
    Console().print(table)
    return 0


def _report(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="crossprobe report",
        description="Render RUN/report.html and RUN/summary.json from what a run left, also while it goes on.",
        formatter_class=RAW,
        epilog="example:\n  crossprobe report runs/demo",
    )
    parser.add_argument("run", type=Path, help="folder of a run")
    chosen = parser.parse_args(arguments)

    from common.errors import RunError
    from server.report import render_report
    from server.summary import write_summary

    try:
        write_summary(chosen.run)
    except RunError as error:
        print(f"no summary yet: {error}")
    print(render_report(chosen.run))
    return 0
