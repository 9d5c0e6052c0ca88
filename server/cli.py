"""The coordinator's commands: `crossprobe study`, `provision` and `report`."""

import argparse
from pathlib import Path

RAW = argparse.RawDescriptionHelpFormatter


def main(command: str, arguments: list[str]) -> int:
    """Run one of this module's commands and return its exit code."""
    if command == "report":
        return _report(arguments)
    from server.federation import cli as study_cli

    return study_cli.study(arguments) if command == "study" else study_cli.provision(arguments)


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
    from server.report.page import render_report
    from server.report.summary import write_summary

    try:
        write_summary(chosen.run)
    except RunError as error:
        print(f"no summary yet: {error}")
    print(render_report(chosen.run))
    return 0
