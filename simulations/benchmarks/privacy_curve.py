"""Dice against epsilon on the phantom: `python -m simulations.benchmarks.privacy_curve --out docs/privacy-curve`.

One labelled phantom site, one branch, the same number of supervised steps at every noise level and once
without privacy. Writes a table (Markdown) and its numbers (JSON); no number of the table is typed in.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from safetensors.numpy import load_file

from clients.data.dataset import Dataset, by_patient
from clients.data.site import Site
from clients.learning.scoring import sample_dice
from clients.node.simulated import open_worker
from common.components import Split
from common.infusion import predict_maps
from common.metrics import bootstrap_interval
from common.networks import Networks
from common.options import Seed, only
from common.run_folder import RunFolder
from common.study import Study, parse_study
from server.run import run_study
from simulations.local import LocalTransport
from simulations.phantom.sites import write_phantom_site
from simulations.publication import origin, publish

PATIENTS: dict[Split, int] = {"train": 60, "test": 20}
FRAMES = 3
#: From hardly a promise to one that means something: epsilon about 83, 19, 6 and 3 at the defaults below.
NOISE = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Point:
    """One training: Dice in [0, 1] over the test patients, with the mean's 95 % interval.

    `noise` and `epsilon` are None without privacy.
    """

    noise: float | None
    epsilon: float | None
    dice: float
    ci95: tuple[float, float]
    seconds: float


def curve_study(noise: float | None, *, seed: int, steps: int, batch_size: int, clip: float, delta: float) -> Study:
    """Return the study of one point: `supervise` alone, one branch, three rounds of a third of the steps."""
    privacy = {
        "noise_multiplier": noise,
        "max_gradient_norm": clip,
        "nominal_patients": PATIENTS["train"],
        "frames_per_patient": 2,
        "delta": delta,
        "epsilon_cap": 1e6,  # the curve is to show where it leads, not to stop there
    }
    task = {"task": "supervise", "trains": ["source_branch"], "steps": steps // 3}
    content: dict[str, Any] = {
        "name": "privacy-curve",
        "seed": seed,
        "batch_size": batch_size,
        "participation": {"quorum": {"source": 1, "target": 0}},
        "stages": [{"name": "pretrain", "rounds": 3, "source": task}],
    }
    return parse_study(content | ({"privacy": privacy} if noise is not None else {}), origin="privacy_curve")


def dice_of_patients(study: Study, site: Site, model: Path) -> np.ndarray:
    """Return the source branch's mean Dice of each test patient, on original pixels."""
    networks = Networks(study)
    networks.load(load_file(model))
    data, values = Dataset(site, study), []
    for frames in by_patient(site.frames_of("test", labelled=True)).values():
        own = []
        for frame in frames:
            sample = data.sample(frame)
            found = predict_maps(networks, study, sample.image, sample.valid, ["source_branch"])["source_branch"]
            own.append(sample_dice(found, sample))
        values.append(sum(own) / len(own))
    return np.array(values)


def measure(study: Study, folder: Path) -> Point:
    """Train a study at the site in `folder` and return its point."""
    begun = time.monotonic()
    worker = open_worker(study, folder)
    with TemporaryDirectory() as run:
        run_study(study, LocalTransport([worker]), Path(run))
        values = dice_of_patients(study, worker.site, RunFolder(Path(run)).model)
    low, high = bootstrap_interval(values)
    privacy = study.privacy
    return Point(
        noise=privacy.noise_multiplier if privacy else None,
        epsilon=worker.accountant.stated(privacy),
        dice=float(values.mean()),
        ci95=(float(low), float(high)),
        seconds=round(time.monotonic() - begun, 1),
    )


def page(points: list[Point], settings: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [
        "<!-- written by `python -m simulations.benchmarks.privacy_curve` -->",
        f"`{settings['command']}`",
        "",
        f"Seed {settings['seed']}; {settings['hardware']}; one phantom site, {PATIENTS['train']} training and "
        f"{PATIENTS['test']} test patients of {FRAMES} frames; {settings['steps']} steps of {settings['batch_size']} "
        f"patients on average; clip {settings['clip']:g}; delta {settings['delta']:g}.",
        "",
        "| noise multiplier | epsilon | Dice % [95 %] | seconds |",
        "| --- | --- | --- | --- |",
    ]
    for point in points:
        low, high = (100 * x for x in point.ci95)
        noise = "no privacy" if point.noise is None else f"{point.noise:g}"
        epsilon = "unbounded" if point.epsilon is None else f"{point.epsilon:.2f}"
        lines.append(f"| {noise} | {epsilon} | {100 * point.dice:.1f} [{low:.1f}, {high:.1f}] | {point.seconds:.0f} |")
    return "\n".join([*lines, ""])


def main(
    out: Annotated[Path, typer.Option(help="the table's path, without its ending")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="where the phantom site is kept")] = Path(
        "runs/privacy-curve"
    ),
    noise: Annotated[
        list[float] | None, typer.Option(min=0.01, metavar="FLOAT ...", help=f"noise multipliers (default: {NOISE})")
    ] = None,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=3, help="supervised steps, in three rounds")] = 300,
    batch_size: Annotated[int, typer.Option(min=1, help="patients a step, on average")] = 8,
    clip: Annotated[float, typer.Option(min=1e-6, help="L2 norm of one patient's gradient")] = 1.0,
    delta: Annotated[float, typer.Option(min=1e-12, max=0.1)] = 1e-5,
) -> None:
    """Train one phantom site at several noise levels and once without privacy; tell Dice and epsilon.

    Writes OUT.md and OUT.json after every point.
    """
    console = Console()
    folder = write_phantom_site(
        data / "north",
        name="north",
        role="source",
        profile="lumify_like",
        seed=seed,
        first_patient=0,
        patients=PATIENTS,
        frames_per_patient=FRAMES,
    )
    settings = origin("simulations.benchmarks.privacy_curve", seed)
    settings |= {"steps": steps, "batch_size": batch_size, "clip": clip, "delta": delta}
    points = []
    for level in (None, *(noise or NOISE)):
        study = curve_study(level, seed=seed, steps=steps, batch_size=batch_size, clip=clip, delta=delta)
        points.append(measure(study, folder))
        console.print(points[-1])
        content = {**settings, "points": [asdict(point) for point in points]}
        publish(out, content, page(points, settings))


if __name__ == "__main__":
    torch.set_num_threads(1)
    only(main, "python -m simulations.benchmarks.privacy_curve --out docs/privacy-curve", option="--noise")
