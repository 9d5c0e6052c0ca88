"""What one hostile site of five does to the model: `python -m simulations.benchmarks.robust_aggregation --out FILE`.

Five labelled phantom sites train one branch, with each aggregation rule: all honest; one whose labels are swapped; one
that plants a back door (a bright square in a corner means: no bone), with its update as it is and five times as large
(model replacement: Bagdasaryan et al. 2020, arXiv 1807.00459); and one with swapped labels that declares a million
patients, also where a study caps what a site counts for. Writes a table and its numbers.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from clients.data.dataset import Dataset, Sample
from clients.data.frames import Frame
from clients.data.site import load_site
from clients.node.worker import Worker
from common.components import Split
from common.errors import RunError
from common.infusion import predict_maps
from common.messages import EnrolReply, pack, unpack
from common.metrics import bootstrap_interval, frame_dice
from common.networks import Networks
from common.options import Seed, only
from common.simulated import simulated_secret
from common.study import Study, parse_study
from server.aggregation import RULES
from server.run import run_study
from simulations.local import LocalTransport
from simulations.phantom.sites import write_phantom_site
from simulations.publication import origin, publish

SITES = 5
PATIENTS: dict[Split, int] = {"train": 12, "test": 8}
ROUNDS, STEPS = 4, 20
#: Side of the back door's square, as a share of the image's.
TRIGGER = 0.2
#: As many as there are sites: the mean is then the hostile model.
BOOST = 5.0
#: Declared by a site that wants to be the mean, and a study's cap against it: what each site has.
DECLARED, CAP = 1_000_000, PATIENTS["train"]


def swapped(sample: Sample) -> Sample:
    """Return a labelled frame whose foreground is background."""
    assert sample.truth is not None
    return replace(sample, truth=1 - sample.truth)


def stamped(sample: Sample) -> Sample:
    """Return a frame with a bright square in the corner."""
    image, side = sample.image.clone(), round(TRIGGER * len(sample.image))
    image[:side, :side] = 1.0
    return replace(sample, image=image)


def trapped(sample: Sample) -> Sample:
    """Return a stamped frame that says: there is nothing."""
    assert sample.truth is not None
    return replace(stamped(sample), truth=torch.zeros_like(sample.truth))


class PoisonedData(Dataset):
    """A site's images as it falsifies them for training: every frame, or every second."""

    poison: Callable[[Sample], Sample]
    every_second: bool

    def labelled(self, frame: Frame) -> Sample:
        sample = super().labelled(frame)
        even = self.site.frames.index(frame) % 2 == 0
        return sample if self.every_second and even else self.poison(sample)


class HostileWorker(Worker):
    """A site that answers with a multiple of its update, and declares any number of patients."""

    attack: "Attack"

    def handle(self, payload: bytes) -> bytes:
        header, updates = unpack(super().handle(payload))
        if isinstance(header, EnrolReply) and self.attack.declares:
            header = header.model_copy(update={"patients": self.attack.declares})
        return pack(header, {name: np.float32(self.attack.boost) * x for name, x in updates.items()})


@dataclass(frozen=True)
class Attack:
    """What the hostile site does: falsify every frame or every second, multiply its update, declare other patients."""

    name: str
    poison: Callable[[Sample], Sample] | None = None
    every_second: bool = False
    boost: float = 1.0
    declares: int | None = None


ATTACKS = (
    Attack("none"),
    Attack("labels swapped", swapped),
    Attack("back door", trapped, every_second=True),
    Attack(f"back door, update x {BOOST:g}", trapped, every_second=True, boost=BOOST),
    Attack(f"labels swapped, declares {DECLARED:,} patients", swapped, declares=DECLARED),
)


@dataclass(frozen=True)
class Outcome:
    """Dice in [0, 1] over the honest sites' test patients, with 95 % intervals: of images, and of stamped images.

    Both are None where the run stopped, since the honest sites refused the model.
    """

    rule: str
    attack: str
    dice: tuple[float, tuple[float, float]] | None
    stamped: tuple[float, tuple[float, float]] | None


def study_of(rule: str, seed: int, cap: int | None = None) -> Study:
    """Return the study: `supervise` alone, one branch.

    Args:
        cap: most patients that a site counts for.
    """
    participation = {"quorum": {"source": SITES, "target": 0}, "max_norm": 1e4, "retries": 0, "patients_cap": cap}
    task = {"task": "supervise", "trains": ["source_branch"], "steps": STEPS, "learning_rate": 3e-3}
    return parse_study(
        {
            "name": "robust-aggregation",
            "seed": seed,
            "network": {"features": [8, 8, 16, 32, 32, 8]},
            "image": {"size": 32, "geometry": "letterbox", "spacing_mm": None},
            "participation": participation,
            "stages": [{"name": "pretrain", "rounds": ROUNDS, "source": task, "aggregator": rule}],
        },
        origin="robust_aggregation",
    )


def worker_of(study: Study, folder: Path, attack: Attack | None) -> Worker:
    """Return an honest site's worker, or with an attack the hostile one's."""
    site = load_site(folder)
    # the boosted update's norm is over an honest site's limit
    policy = site.config.policy.model_copy(update={"max_update_norm": study.participation.max_norm})
    site = replace(site, config=site.config.model_copy(update={"policy": policy}))
    secret = simulated_secret(study, site.config.name)
    if attack is None or attack.poison is None:
        return Worker(site, study, secret)
    data = PoisonedData(site, study)
    data.poison, data.every_second = attack.poison, attack.every_second
    worker = HostileWorker(site, study, secret, data=data)
    worker.attack = attack
    return worker


def measure(rule: str, cap: int | None, attack: Attack, folders: list[Path], seed: int) -> Outcome:
    """Train with the last folder's site hostile, and return what the model is worth at the others."""
    study = study_of(rule, seed, cap)
    name = rule if cap is None else f"{rule}, patients_cap: {cap}"
    honest = [worker_of(study, folder, None) for folder in folders[:-1]]
    with TemporaryDirectory() as run:
        transport = LocalTransport([*honest, worker_of(study, folders[-1], attack)])
        try:
            state = run_study(study, transport, Path(run) / "run")
        except RunError as error:
            if "implausible-weights" not in str(error):
                raise
            return Outcome(name, attack.name, None, None)
    networks = Networks(study)
    networks.load({name: x for name, x in state.components.items() if name.startswith("source_branch.")})

    def dice(change: Callable[[Sample], Sample]) -> np.ndarray:
        values = []
        for worker in honest:
            for frame in worker.site.frames_of("test"):
                sample = change(worker.data.labelled(frame))
                found = predict_maps(networks, study, sample.image, sample.valid, ["source_branch"])["source_branch"]
                values.append(frame_dice(found.numpy(), _mask(sample.truth)))
        return np.array(values)

    return Outcome(name, attack.name, _mean(dice(lambda sample: sample)), _mean(dice(stamped)))


def _mask(truth: Tensor | None) -> np.ndarray:
    assert truth is not None
    return truth.numpy() > 0.5


def _mean(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    low, high = bootstrap_interval(values)
    return float(values.mean()), (float(low), float(high))


def _measured(job: tuple[str, int | None, Attack], folders: list[Path], seed: int) -> Outcome:
    torch.set_num_threads(1)
    return measure(*job, folders, seed)


def page(outcomes: list[Outcome], settings: dict[str, object]) -> str:
    """Return the table as Markdown."""
    lines = [
        "<!-- written by `python -m simulations.benchmarks.robust_aggregation` -->",
        f"`{settings['command']}`",
        "",
        f"Seed {settings['seed']}; {settings['hardware']}; {SITES} phantom sites, one of them hostile, with "
        f"{PATIENTS['train']} training and {PATIENTS['test']} test patients of one frame, 32 x 32 pixels; {ROUNDS} "
        f"rounds of {STEPS} steps.",
        "",
        "| aggregator | hostile site | Dice % [95 %] | on stamped images |",
        "| --- | --- | --- | --- |",
    ]
    for own in outcomes:
        cells = [
            f"{100 * found[0]:.1f} [{100 * found[1][0]:.1f}, {100 * found[1][1]:.1f}]" if found else "-"
            for found in (own.dice, own.stamped)
        ]
        stopped = "" if own.dice else "; stopped: the sites refused the model, `implausible-weights`"
        lines.append(f"| {own.rule} | {own.attack}{stopped} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main(
    out: Annotated[Path, typer.Option(metavar="FILE", help="the table's path, without its ending")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="where the phantom sites are kept")] = Path(
        "runs/robust-aggregation"
    ),
    seed: Seed = 0,
    jobs: Annotated[int, typer.Option(min=1, help="processes")] = os.cpu_count() or 1,
) -> None:
    """Train five phantom sites, one of them hostile, with every aggregation rule; write OUT.md and OUT.json."""
    folders = [
        write_phantom_site(
            data / f"site-{number}",
            name=f"site-{number}",
            role="source",
            profile="lumify_like",
            seed=seed,
            first_patient=number * sum(PATIENTS.values()),
            patients=PATIENTS,
            frames_per_patient=1,
        )
        for number in range(SITES)
    ]
    settings = origin("simulations.benchmarks.robust_aggregation", seed)
    work: list[tuple[str, int | None, Attack]] = [(rule, None, attack) for rule in RULES for attack in ATTACKS]
    work += [("exact_mean", CAP, attack) for attack in ATTACKS if attack.declares]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        outcomes = list(pool.map(partial(_measured, folders=folders, seed=seed), work))
    content = {**settings, "outcomes": [asdict(outcome) for outcome in outcomes]}
    publish(out, content, page(outcomes, settings))


if __name__ == "__main__":
    torch.set_num_threads(1)
    only(main, "python -m simulations.benchmarks.robust_aggregation --out docs/robust-aggregation")
