"""A pool of models to rank: honest ones of differing worth, and failures planted on purpose.

Checkpoints along supervised trainings on a source, continuations on the target under their own pseudo-labels, and
continuations on pseudo-labels that were spoiled: the collapse, the blow-up and the wrong structure that self-training
is feared for.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from scipy import ndimage
from torch import Generator, Tensor

from clients.data.dataset import Sample
from common.artefact_settings import Artefact
from common.infusion import predict_maps
from common.networks import Branch, Networks, initial_networks
from common.seeds import derive_seed
from common.study import Study
from simulations.ablation.one_branch import LEARNING_RATE, train_branch

Weights = Mapping[str, Tensor]
#: Steps after which a supervised training is a candidate.
MARKS = (150, 300, 600)
#: Supervised training -> strength of the artefacts in its views; each has a seed of its own.
TRAININGS = {"plain": 0.0, "artefacts": 0.5}
#: Steps a round of self-training, rounds from a training's last model, and the earlier steps whose model has one round.
ROUND, ROUNDS, EARLY = 30, 3, 300
#: Steps on spoiled labels, and the model that they begin at.
SPOILED, REFERENCE = 30, f"plain, {MARKS[-1]} steps"


@dataclass(frozen=True)
class Candidate:
    """A model to rank.

    Attributes:
        planted: it learnt spoiled labels.
        steps: optimizer steps behind it, from its first weights on.
        parent: name of the candidate that it was continued from; empty for a training from nothing.
    """

    name: str
    weights: Weights
    steps: int
    planted: bool = False
    parent: str = ""


def predict(networks: Networks, study: Study, weights: Weights, samples: Sequence[Sample]) -> list[Tensor]:
    """Return a model's foreground probability on each sample, [h, w] in [0, 1] and 0 on padding."""
    networks.baseline.load_state_dict(dict(weights))
    found = []
    for sample in samples:
        p = predict_maps(networks, study, sample.image, sample.valid, ["baseline"])["baseline"]
        found.append(p * sample.valid)
    return found


def labelled_by(samples: Sequence[Sample], maps: Sequence[Tensor]) -> list[Sample]:
    """Return the samples with the maps' masks as their truth."""
    return [replace(sample, truth=(p > 0.5).float()) for sample, p in zip(samples, maps, strict=True)]


def learn(
    branch: Branch,
    study: Study,
    lessons: Sequence[Sample],
    generator: Generator,
    *,
    marks: Sequence[int],
    artefacts: float = 0.0,
    rate: float = LEARNING_RATE,
) -> list[Weights]:
    """Train a branch in place on labelled samples and return its averaged weights after each of `marks` steps.

    Args:
        lessons: each with a truth; at least a batch of them.
        marks: rising; the last one is the training's length, over which the rate falls.
        artefacts: strength of the whole bank in the views, 0 for none.
    """
    kinds: dict[Artefact, float] = dict.fromkeys(get_args(Artefact), artefacts) if artefacts else {}
    branch.requires_grad_(True)
    average = copy.deepcopy(branch).requires_grad_(False)

    def draw(generator: Generator) -> list[Sample]:
        return [lessons[i] for i in torch.randperm(len(lessons), generator=generator)[: study.batch_size].tolist()]

    steps = train_branch(branch, average, study, draw, generator, steps=marks[-1], artefacts=kinds, rate=rate)
    found: list[Weights] = [
        {name: x.clone() for name, x in average.state_dict().items()} for step in steps if step in marks
    ]
    return found


def resized(mask: np.ndarray, factor: float) -> np.ndarray:
    """Return a bool mask [h, w] of `factor` times the area: what lies deepest within it, or nearest around it."""
    inside = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    return _highest(inside, round(factor * int(mask.sum())))


def shifted(mask: np.ndarray) -> np.ndarray:
    """Return a mask [h, w] a quarter of the image deeper; what leaves below comes in above."""
    return np.roll(mask, len(mask) // 4, axis=0)


def brightest_elsewhere(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a bool mask [h, w] of the same area: the brightest of an image smoothed a little, outside the mask."""
    smooth = ndimage.gaussian_filter(image, 1.5)
    return _highest(np.where(mask, -1.0, smooth), int(mask.sum()))


def _highest(values: np.ndarray, count: int) -> np.ndarray:
    """Return where the `count` highest of values [h, w] are; of equal ones the first in reading order."""
    found = np.zeros(values.size, dtype=bool)
    found[np.argsort(-values.ravel(), kind="stable")[:count]] = True
    return found.reshape(values.shape)


#: Failure -> what it makes of an image and its pseudo-label; each kind at two strengths.
SPOILS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "collapse, mild": lambda _, mask: resized(mask, 0.35),
    "collapse, full": lambda _, mask: resized(mask, 0.0),
    "blow-up, mild": lambda _, mask: resized(mask, 2.0),
    "blow-up, strong": lambda _, mask: resized(mask, 4.0),
    "wrong structure, shifted": lambda _, mask: shifted(mask),
    "wrong structure, brightest elsewhere": brightest_elsewhere,
}


def spoiled(lesson: Sample, spoil: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Sample:
    """Return a labelled sample whose truth is spoiled."""
    assert lesson.truth is not None
    mask = spoil(lesson.image.numpy(), lesson.truth.numpy() > 0.5)
    return replace(lesson, truth=torch.from_numpy(mask).float())


def supervised(study: Study, lessons: Sequence[Sample]) -> list[Candidate]:
    """Return the checkpoints of every supervised training on a source's labelled samples."""
    found = []
    for number, (name, artefacts) in enumerate(TRAININGS.items()):
        own = study.model_copy(update={"seed": study.seed + 1000 * number})
        branch = initial_networks(own).source_branch
        weights = learn(branch, own, lessons, _generator(own, name), marks=MARKS, artefacts=artefacts)
        found += [Candidate(f"{name}, {mark} steps", x, mark) for mark, x in zip(MARKS, weights, strict=True)]
    return found


def adapted(study: Study, pool: Sequence[Candidate], images: Sequence[Sample]) -> Iterator[Candidate]:
    """Continue models of `supervised` on a target's images and give each as it is done.

    The last model of each training goes on by itself for some rounds, an earlier one for one round. The failures go on
    from the reference, on its masks spoiled.
    """
    networks, known = Networks(study), {own.name: own for own in pool}

    def taught(parent: Candidate) -> list[Sample]:
        return labelled_by(images, predict(networks, study, parent.weights, images))

    def continued(name: str, parent: Candidate, lessons: Sequence[Sample], steps: int) -> Candidate:
        branch = networks.target_branch
        branch.load_state_dict(dict(parent.weights))
        (weights,) = learn(branch, study, lessons, _generator(study, name), marks=[steps])
        return Candidate(name, weights, parent.steps + steps, name in SPOILS, parent.name)

    for training in TRAININGS:
        early = known[f"{training}, {EARLY} steps"]
        yield continued(f"{early.name}, self-trained", early, taught(early), ROUND)
        own = known[f"{training}, {MARKS[-1]} steps"]
        for number in range(1, ROUNDS + 1):
            own = continued(f"{training}, self-trained, round {number}", own, taught(own), ROUND)
            yield own
    reference = known[REFERENCE]
    lessons = taught(reference)
    for name, spoil in SPOILS.items():
        yield continued(name, reference, [spoiled(lesson, spoil) for lesson in lessons], SPOILED)


def _generator(study: Study, purpose: str) -> Generator:
    return torch.Generator().manual_seed(derive_seed(b"ranking", study.seed, purpose))
