"""A study of 1,000 simulated sites beside plain Flower's simulation: `python -m simulations.benchmarks.many_sites`.

Every site has a tiny patient set of its own folder; all train one branch for one step, so that what is measured is what
a round costs beside the training. Plain Flower takes the same steps from the same folders and sends the same tensors.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from clients.node.simulated import KEPT_SITES
from common.components import Split
from common.options import Seed, only
from common.run_folder import RunFolder
from common.study import read_study_of_run
from server import history
from server.report.page import render_report
from server.state import load_state
from simulations.benchmarks.systems import Ran, crossprobe, plain_flower
from simulations.phantom.sites import write_phantom_site
from simulations.publication import origin, tell

FEW = 10
ROUNDS = 2
PATIENTS: dict[Split, int] = {"train": 2, "test": 2}
#: One of so many sites has labelled test patients.
EVALUATES = 10
#: Two patients are below every hospital's floor.
POLICY = {"min_patients": 1, "min_update_patients": 1, "min_update_draws": 1}
STUDY = {
    "name": "many-sites",
    "batch_size": 2,
    "stages": [
        {"name": "pretrain", "rounds": ROUNDS, "source": {"task": "supervise", "trains": ["source_branch"], "steps": 1}}
    ],
    "participation": {"deadline_s": 3600.0},
}


@dataclass(frozen=True)
class Upkeep:
    """What a run of many sites leaves for a coordinator: seconds to read or write it, and bytes."""

    history_s: float
    history_bytes: int
    checkpoint_s: float
    state_bytes: int
    report_s: float
    report_bytes: int


def write_sites(folder: Path, count: int, seed: int) -> list[Path]:
    """Write sites that differ in name alone, and in whether they have test patients; pictures are links."""
    kinds: tuple[dict[Split, int], ...] = (PATIENTS, {"train": PATIENTS["train"]})
    tested, untested = (
        write_phantom_site(
            folder / f"pattern-{number}",
            name="pattern",
            role="source",
            profile="lumify_like",
            seed=seed,
            first_patient=0,
            patients=patients,
            frames_per_patient=1,
        )
        for number, patients in enumerate(kinds)
    )
    found = []
    for number in range(count):
        site = folder / f"site-{number:04d}"
        shutil.copytree(untested if number % EVALUATES else tested, site, copy_function=os.link)
        (site / "site.yaml").unlink()  # a link, too
        (site / "site.yaml").write_text(yaml.safe_dump({"name": site.name, "role": "source", "policy": POLICY}))
        found.append(site)
    return found


def upkeep(run: Path) -> Upkeep:
    """Measure what is read and written of a finished run."""
    study, folder = read_study_of_run(run), RunFolder(run)

    def timed(what: Callable[[], object]) -> float:
        began = time.perf_counter()
        what()
        return round(time.perf_counter() - began, 2)

    return Upkeep(
        history_s=timed(lambda: history.read(run)),
        history_bytes=folder.history.stat().st_size,
        checkpoint_s=timed(lambda: load_state(folder.checkpoint, study.hash())),
        state_bytes=(folder.checkpoint / "state.json").stat().st_size,
        report_s=timed(lambda: render_report(run)),
        report_bytes=folder.report.stat().st_size,
    )


def page(sites: int, few: Ran, many: Ran, plain: Ran, kept: Upkeep, settings: dict[str, object]) -> str:
    """Return the tables as Markdown."""
    lines = [
        f"`{settings['command']}`, {settings['hardware']}.",
        "",
        "| system | sites | first round, s | a later round, s | server, MB | a process of sites, MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for count, ran in ((FEW, few), (sites, many), (sites, plain)):
        lines.append(
            f"| {ran.system} | {count:,} | {ran.rounds_s[0]:.1f} | {ran.later_s:.1f} | {ran.server_mb:.0f} | "
            f"{ran.site_mb:.0f} |"
        )
    lines += [
        "",
        f"A later round of {sites:,} sites costs {many.later_s / plain.later_s:.2f} x plain Flower's; the server's "
        f"memory is {many.server_mb / few.server_mb:.2f} x that of {FEW} sites, plain Flower's "
        f"{plain.server_mb / few.server_mb:.2f} x. A process of the simulation keeps the images of {KEPT_SITES} sites; "
        "beyond, a site's files are read again in each round, which is in the seconds above.",
        "",
        f"Of {sites:,} sites the history of {ROUNDS} rounds has {kept.history_bytes / 1e3:.0f} kB and is read in "
        f"{kept.history_s:.1f} s, the checkpoint's state {kept.state_bytes / 1e3:.0f} kB and {kept.checkpoint_s:.1f} "
        f"s, the report {kept.report_bytes / 1e3:.0f} kB and {kept.report_s:.1f} s to write.",
    ]
    return "\n".join(lines)


def main(
    sites: Annotated[int, typer.Option(min=FEW, help="simulated sites")] = 1000,
    seed: Seed = 0,
) -> None:
    """Run many sites beside plain Flower; write docs/performance/many-sites.json and its part of the page."""
    settings = origin("simulations.benchmarks.many_sites", seed)
    with tempfile.TemporaryDirectory(prefix="crossprobe-many-") as temporary:
        root, console = Path(temporary), Console(stderr=True)
        study = root / "study.yaml"
        study.write_text(yaml.safe_dump(STUDY))
        folders = write_sites(root / "sites", sites, seed)
        console.print(f"{FEW} sites")
        few = crossprobe(study, folders[:FEW], root / "few", ROUNDS)
        console.print(f"{sites} sites")
        many = crossprobe(study, folders, root / "many", ROUNDS)
        console.print(f"{sites} sites on plain Flower")
        plain = plain_flower(study, folders, ROUNDS)
        kept = upkeep(root / "many")
    ran = [asdict(own) for own in (few, many, plain)]
    figures = {**settings, "sites": sites, "ran": ran, "upkeep": asdict(kept)}
    tell("many-sites", figures, page(sites, few, many, plain, kept, settings))


if __name__ == "__main__":
    only(main, "python -m simulations.benchmarks.many_sites", "make benchmark")
