"""A number of one patient, out of two studies that differ by him: before he came and after, or after he left.

The mean over n patients times n, less the mean over the others times n - 1, is his own value, as far as rounding leaves
it: the differencing attack (Dwork and Roth 2014, section 1.1). Within a study such numbers do not change; the second
study is another one. The attacker is taken to know n.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clients.data.dataset import Dataset
from clients.data.site import Site
from clients.learning.evaluate import measure_patients
from clients.learning.scoring import mean_area, visible_widths
from clients.node.worker import Worker
from clients.released import Model
from common.components import FUSED, Tensors
from common.metrics import mean_by_patient, measure_frame
from common.simulated import simulated_secret
from common.stage import Round
from common.study import Study
from simulations.audit.ask import Refused, ask_numbers, hostile_study

#: Patients who are taken out, one at a time.
ATTACKED = 8
#: His value counts as told where the attacker is this near to it, and the mean of the others is not.
NEAR = 0.01
#: Enough images for the policy's floor, and small: what the training makes does not matter here.
AREA: dict[str, Any] = {"batch_size": 128, "size": 32}


@dataclass(frozen=True)
class Told:
    """What one number gave away at one site.

    Attributes:
        patients: behind the number.
        answer: of the site under its own policy: `answered`, `withheld` (the number does not leave), or its refusal.
        attacked: patients who were taken out.
        error: mean distance between a patient's value and what the attacker made of the two numbers.
        guess: the same, of the mean of the others: what he would say without the attack.
        told: patients of whom he was within 0.01, and the guess was not.
    """

    site: str
    number: str
    patients: int
    answer: str
    attacked: int
    error: float
    guess: float
    told: int


Ask = Callable[[Site, str], Mapping[str, float]]


def numbers(site: Site, model: Model | None, seed: int) -> Iterator[Told]:
    """Yield what each number gives away that a site of this role sends over all patients of a split.

    Args:
        model: whose evaluation is attacked; None: only what training tells.
    """
    if site.config.role == "source":
        study = hostile_study("supervise", seed=seed, **AREA)
        ask = _asking(study, next(iter(study.rounds())), {})
        yield _told(site, "foreground_fraction", ask, _areas(site, study), seed)
    if model is not None and model.study.fused and site.patients("test", labelled=True):
        study, closing = model.study, list(model.study.rounds())[-1]
        ask = _asking(study, closing, model.networks.export(FUSED))
        found = measure_patients(model.networks, study, Dataset(site, study), ("infusion",), measure_frame)["infusion"]
        truths = dict(zip(sorted(found), mean_by_patient(found, "dice"), strict=True))
        yield _told(site, "infusion/dice/mean", ask, truths, seed)


def _asking(study: Study, round_: Round, tensors: Tensors) -> Ask:
    def ask(site: Site, name: str) -> Mapping[str, float]:
        of = study.model_copy(update={"name": f"{study.name}-{name}"})
        task = round_.stage.task_of(site.config.role)
        assert task is not None
        return ask_numbers(Worker(site, of, simulated_secret(of, site.config.name)), of, round_, task, tensors)

    return ask


def _areas(site: Site, study: Study) -> dict[str, float]:
    """Return each training patient's marked share of the image, as the number counts it."""
    data = Dataset(site, study)
    found = {}
    for frame in data.overview("train", len(site.patients("train"))):
        sample = data.labelled(frame)
        assert sample.truth is not None
        found[frame.patient] = mean_area([sample.truth], 0.5, study.image.size, visible_widths(study, [sample]))
    return found


def _told(site: Site, number: str, ask: Ask, truths: Mapping[str, float], seed: int) -> Told:
    """Take patients out of a split, one at a time, and tell how near the difference comes to each one's value."""
    everyone = sorted(truths)
    chosen = np.random.default_rng(seed).permutation(everyone)[:ATTACKED]
    try:
        after = ask(site, "after").get(number)
        before = [ask(_without(site, patient), "before").get(number) for patient in chosen]
        answer = "withheld" if after is None or None in before else "answered"
    except Refused as refusal:
        answer = refusal.code
    if answer != "answered":
        return Told(site.config.name, number, len(everyone), answer, 0, 0.0, 0.0, 0)
    truth, less = np.array([truths[patient] for patient in chosen]), np.array(before, dtype=float)
    assert after is not None
    error = np.abs(len(everyone) * after - (len(everyone) - 1) * less - truth)
    guess = np.abs(less - truth)
    told = int(((error <= NEAR) & (guess > NEAR)).sum())
    return Told(
        site.config.name, number, len(everyone), answer, len(chosen), float(error.mean()), float(guess.mean()), told
    )


def _without(site: Site, patient: str) -> Site:
    return replace(site, frames=tuple(frame for frame in site.frames if frame.patient != patient))
