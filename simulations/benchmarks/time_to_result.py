"""Where a demo's time and bytes go: `python -m simulations.benchmarks.time_to_result --run runs/demo`.

Read from the run's own histories and summary; without `--run` the demo is run first.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from safetensors.numpy import load_file

from common.options import Seed, only
from common.run_folder import RunFolder
from server import history
from server.history import RoundRecord
from simulations.benchmarks.systems import ROOT
from simulations.publication import origin, tell


@dataclass(frozen=True)
class Part:
    """Of a run: wall seconds, and how many cores the sites' threads kept busy on average."""

    name: str
    seconds: float
    cores: float


def parts(run: Path) -> list[Part]:
    """Return the parts of a finished run, in order."""
    folder = RunFolder(run)
    baseline, study = history.read(folder.baseline.path), history.read(run)
    summary = json.loads(folder.summary.read_text())
    wall, threads = float(summary["wall_s"]), summary["threads"]
    between = _began(study[0]) - _ended(baseline[-1])
    found = [
        *_of_stages("baseline", baseline, threads["baseline"]),
        Part("Flower starts for the study", between, 0),
        *_of_stages("", study, threads["study"]),
    ]
    rest = wall - sum(part.seconds for part in found)
    return [*found, Part("Flower starts for the baseline; pictures, summary and report", rest, 0)]


def _of_stages(name: str, records: Sequence[RoundRecord], threads: int) -> list[Part]:
    found = []
    for stage, group in groupby(records, lambda record: record.stage):
        rounds = list(group)
        seconds = _ended(rounds[-1]) - _began(rounds[0])
        busy = threads * sum(site.seconds for record in rounds for site in record.sites.values())
        found.append(Part(name or stage, seconds, busy / seconds))
    return found


def _began(record: RoundRecord) -> float:
    return datetime.fromisoformat(record.started).timestamp()


def _ended(record: RoundRecord) -> float:
    return _began(record) + record.seconds


def dice(run: Path) -> dict[str, float]:
    """Return site -> Dice of the released model, in percent."""
    found = json.loads(RunFolder(run).summary.read_text())["dice"]
    return {site: round(100 * cells["infusion"]["mean"], 1) for site, cells in found.items()}


def traffic(run: Path) -> dict[str, float]:
    """Return the study's megabytes, and what they were if each site got and sent every component in each round."""
    records = history.read(run)
    sites = [site for record in records for site in record.sites.values()]
    whole = sum(tensor.nbytes for tensor in load_file(RunFolder(run).model).values())
    return {
        "to_sites": sum(site.bytes_to for site in sites) / 1e6,
        "from_sites": sum(site.bytes_from for site in sites) / 1e6,
        "each_way_of_whole_models": len(sites) * whole / 1e6,
    }


def page(found: list[Part], reached: dict[str, float], moved: dict[str, float], settings: dict[str, object]) -> str:
    """Return the table as Markdown."""
    wall, work = sum(part.seconds for part in found), sum(part.seconds * part.cores for part in found)
    cores = os.cpu_count() or 1
    return "\n".join(
        [
            f"`{settings['command']}`, {settings['hardware']}.",
            "",
            "| part | seconds | cores that sites keep busy |",
            "| --- | --- | --- |",
            *(f"| {part.name} | {part.seconds:.0f} | {part.cores:.1f} |" for part in found),
            f"| all | {wall:.0f} | {work / wall:.1f} |",
            "",
            f"The sites' work alone, spread evenly over {cores} cores, would take {work / cores:.0f} s. Dice of the "
            f"released model: {', '.join(f'{site} {value:.1f}' for site, value in reached.items())}.",
            "",
            f"{moved['to_sites']:.0f} MB went to the sites and {moved['from_sites']:.0f} MB came from them; the "
            "released model alone, to each and from each in every round, were "
            f"{moved['each_way_of_whole_models']:.0f} MB each way.",
        ]
    )


def main(
    run: Annotated[Path | None, typer.Option(metavar="RUN", help="of a finished demo (default: one is run)")] = None,
    seed: Seed = 0,
) -> None:
    """Tell where a demo's time and bytes go; write docs/performance/time-to-result.json and its part of the page."""
    settings = origin("simulations.benchmarks.time_to_result", seed)
    with tempfile.TemporaryDirectory(prefix="crossprobe-time-") as folder:
        if run is None:
            run = Path(folder) / "demo"
            command = [sys.executable, "-m", "crossprobe", "demo", "--seed", str(seed), "--out", str(run)]
            subprocess.run(command, cwd=ROOT, check=True)
        found, reached, moved = parts(run), dice(run), traffic(run)
        settings["hardware"] = json.loads(RunFolder(run).summary.read_text())["hardware"]
    figures = {**settings, "parts": [asdict(part) for part in found], "dice": reached, "megabytes": moved}
    tell("time-to-result", figures, page(found, reached, moved, settings))


if __name__ == "__main__":
    only(main, "python -m simulations.benchmarks.time_to_result --run runs/demo")
