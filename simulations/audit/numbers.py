"""A number of one patient, out of two studies that differ by him: before he came and after, or after he left.

The mean over n patients times n, less the mean over the others times n - 1, is his own value, as far as rounding leaves
it: the differencing attack (Dwork and Roth 2014, section 1.1). Within a study such numbers do not change; the second
study is another one. The attacker is taken to know how many are behind each number. A site's state stays between the
studies, and with it who counts together (`clients.governance.cohorts`): then the difference is one of several patients,
and the best that he can say of each is their mean.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clients.data.dataset import Dataset
from clients.data.site import Site
from clients.governance.cohorts import Cohorts, Counting, everyone
from clients.governance.state import State
from clients.learning.evaluate import measure_patients
from clients.learning.plausibility import Plausibility
from clients.learning.scoring import mean_area
from clients.node.worker import Worker
from clients.released import Model
from common.components import FUSED, Split, Tensors
from common.metrics import mean_by_patient, measure_frame
from common.simulated import simulated_secret
from common.stage import Round
from common.study import Study
from simulations.audit.ask import Refused, ask_numbers, hostile_study

#: Patients who are taken out, one at a time.
ATTACKED = 8
#: Told is the value of a patient alone in the difference, where the attacker is this near to it and the guess is not.
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
        guess: the same, of the mean of the others, or of those of his cohort: what he would say if the difference
            were without this patient.
        told: patients who were alone in a difference, and of whom he was within 0.01, and the guess was not. Of those
            who come and go with others he has their mean, which may be near by chance.
        cohorts: the site keeps who counts together, as a hospital does; False: everybody always counts.
    """

    site: str
    number: str
    patients: int
    answer: str
    attacked: int
    error: float
    guess: float
    told: int
    cohorts: bool


@dataclass(frozen=True)
class Answer:
    """A number as it left, None where it did not, and the patients that it is over."""

    value: float | None
    counted: frozenset[str]

    @property
    def mean(self) -> float:
        """The number, where it left."""
        assert self.value is not None
        return self.value


@dataclass(frozen=True)
class Question:
    """A number over the patients of a split, and the round of a study in which a site is asked for it.

    Attributes:
        tensors: weights that are sent; what they do not name is as the seed gives it.
    """

    number: str
    split: Split
    study: Study
    round: Round
    tensors: Tensors

    def ask(self, site: Site, counting: Counting, name: str) -> Answer:
        """Ask for the number in a study that is the same but for its name."""
        study = self.study.model_copy(update={"name": f"{self.study.name}-{name}"})
        task = self.round.stage.task_of(site.config.role)
        assert task is not None
        secret = simulated_secret(study, site.config.name)
        worker = Worker(site, study, secret, plausibility=self._plausibility, counting=counting)
        value = ask_numbers(worker, study, self.round, task, self.tensors).get(self.number)
        return Answer(value, frozenset(worker.data.counted(self.split, labelled=True)))

    @cached_property
    def _plausibility(self) -> Plausibility:
        return Plausibility(self.study)


def numbers(site: Site, model: Model | None, seed: int) -> Iterator[Told]:
    """Yield what each number gives away that a site of this role sends over all patients of a split.

    Args:
        model: whose evaluation is attacked; None: only what training tells.
    """
    if site.config.role == "source":
        study = hostile_study("supervise", seed=seed, **AREA)
        question = Question("foreground_fraction", "train", study, study.rounds()[0], {})
        yield from _both(site, question, _areas(site, study), seed)
    if model is not None and model.study.fused and site.patients("test", labelled=True):
        study, closing = model.study, model.study.rounds()[-1]
        found = measure_patients(model.networks, study, Dataset(site, study), ("infusion",), measure_frame)["infusion"]
        truths = dict(zip(sorted(found), mean_by_patient(found, "dice"), strict=True))
        question = Question("infusion/dice/mean", "test", study, closing, model.networks.export(FUSED))
        yield from _both(site, question, truths, seed)


def _both(site: Site, question: Question, truths: Mapping[str, float], seed: int) -> Iterator[Told]:
    """Attack a site that keeps who counts together, and one that does not."""
    with tempfile.TemporaryDirectory() as folder:
        cohorts = Cohorts(State.create(Path(folder)), site.config.name, site.config.policy.min_patients)
        yield _told(site, question, cohorts.counted, truths, seed)
    yield _told(site, question, everyone, truths, seed)


def _areas(site: Site, study: Study) -> dict[str, float]:
    """Return each training patient's marked share of the image, as the number counts it."""
    data = Dataset(site, study)
    found = {}
    for frame in data.counted_overview("train"):
        sample = data.labelled(frame)
        assert sample.truth is not None
        found[frame.patient] = mean_area([sample.truth], 0.5, study.image.size)
    return found


def _told(site: Site, question: Question, counting: Counting, truths: Mapping[str, float], seed: int) -> Told:
    """Take patients out of a split, one at a time, and tell how near the difference comes to each one's value."""
    everybody = sorted(truths)
    chosen = np.random.default_rng(seed).permutation(everybody)[:ATTACKED]
    number, cohorts = question.number, counting is not everyone
    try:
        asked = [question.ask(site, counting, "with")]
        asked += [question.ask(_without(site, patient), counting, "without") for patient in chosen]
        answer = "withheld" if None in (own.value for own in asked) else "answered"
    except Refused as refusal:
        answer = refusal.code
    if answer != "answered":
        return Told(site.config.name, number, len(everybody), answer, 0, 0.0, 0.0, 0, cohorts)
    (first, *later), errors, guesses, alone = asked, [], [], []
    for patient, less in zip(chosen, later, strict=True):
        gone = first.counted - less.counted  # he, or he and those who count with him
        value = (len(first.counted) * first.mean - len(less.counted) * less.mean) / len(gone)
        others = [truths[other] for other in sorted(gone - {patient})]
        errors.append(abs(value - truths[patient]))
        alone.append(not others)
        guesses.append(abs((float(np.mean(others)) if others else less.mean) - truths[patient]))
    error, guess = np.array(errors), np.array(guesses)
    return Told(
        site=site.config.name,
        number=number,
        patients=len(everybody),
        answer=answer,
        attacked=len(chosen),
        error=float(error.mean()),
        guess=float(guess.mean()),
        told=int((np.array(alone) & (error <= NEAR) & (guess > NEAR)).sum()),
        cohorts=cohorts,
    )


def _without(site: Site, patient: str) -> Site:
    return replace(site, frames=tuple(frame for frame in site.frames if frame.patient != patient))
