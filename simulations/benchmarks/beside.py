"""One training on CrossProbe, plain Flower, NVFLARE and in one process: `python -m simulations.benchmarks.beside`.

Two labelled phantom sites train one branch of the demo's network; every system takes the same gradient steps on the
same images and averages the same bytes. NVFLARE wants packages that cannot stand beside Flower's, so it is measured
where an environment of its own is named: `--nvflare venv/bin/python`, after `pip install nvflare` there.
"""

import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from common.components import Role, Split
from common.options import Seed, only
from simulations.benchmarks import systems
from simulations.benchmarks.systems import Ran
from simulations.phantom.demo import write_sites
from simulations.publication import origin, tell

#: A round of the demo's first stage.
ROUNDS, STEPS = 6, 60
PATIENTS: Mapping[Role, Mapping[Split, int]] = {"source": {"train": 16}}


def page(ran: list[Ran], settings: dict[str, object]) -> str:
    """Return the table as Markdown."""
    lines = [
        f"`{settings['command']}`, {settings['hardware']}. Two sites, {ROUNDS} rounds of {STEPS} steps.",
        "",
        "| system | start, s | first round, s | a later round, s | server, MB | all processes, MB |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {own.system} | {own.start_s:.1f} | {own.rounds_s[0]:.1f} | {own.later_s:.1f} | {own.server_mb:.0f} | "
            f"{own.all_mb:.0f} |"
            for own in ran
        ),
    ]
    own, alone = (next(each for each in ran if each.system.endswith(what)) for what in ("simulation", "one process"))
    lines += [
        "",
        f"A later round of the simulation takes {own.later_s / alone.later_s:.2f} x that of one process.",
    ]
    if not any(each.system.startswith("NVFLARE") for each in ran):
        lines += ["", "NVFLARE was not measured: no environment with it was named."]
    return "\n".join(lines)


def main(
    nvflare: Annotated[
        Path | None, typer.Option(metavar="PYTHON", help="interpreter of an environment with nvflare")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Train the same on each system; write docs/performance/beside.json and its part of the page."""
    settings, console = origin("simulations.benchmarks.beside", seed), Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="crossprobe-beside-") as temporary:
        root = Path(temporary)
        probes = ["lumify_like", "telemed_like"]
        sites = write_sites(root / "sites", source=probes, seed=seed, patients=PATIENTS, frames=3, workers=2)
        study = root / "study.yaml"
        task = {"task": "supervise", "trains": ["source_branch"], "steps": STEPS}
        stage = {"name": "pretrain", "rounds": ROUNDS, "source": task}
        study.write_text(yaml.safe_dump({"name": "beside", "stages": [stage]}))
        console.print("one process")
        ran = [systems.one_process(study, sites, root / "alone", ROUNDS)]
        console.print("CrossProbe's simulation")
        ran.append(systems.crossprobe(study, sites, root / "simulated", ROUNDS))
        console.print("plain Flower")
        ran.append(systems.plain_flower(study, sites, ROUNDS))
        if nvflare is not None:
            settings["command"] = str(settings["command"]).replace(str(nvflare), "PYTHON")  # wherever it lies
            console.print("NVFLARE")
            ran.append(systems.nvflare(nvflare, Path(sysconfig.get_path("purelib")), study, sites, ROUNDS))
    tell("beside", {**settings, "ran": [asdict(own) for own in ran]}, page(ran, settings))


if __name__ == "__main__":
    only(main, "python -m simulations.benchmarks.beside --nvflare venv/bin/python")
