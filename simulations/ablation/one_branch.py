"""A single branch trained on labelled samples outside a federation, its running average beside it."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Generator, nn

from clients.data.dataset import Sample, tiles
from clients.learning.training import MAX_GRADIENT_NORM, annealed, averaging, follow
from clients.learning.view import view
from common.artefact_settings import Artefact
from common.losses import dice_cross_entropy
from common.networks import Branch
from common.study import Study

#: The rate at which a training begins, its warm-up, and the decay of the averaged weights.
LEARNING_RATE, WARMUP, DECAY = 1e-3, 9, 0.98


def train_branch(
    branch: Branch,
    average: Branch,
    study: Study,
    draw: Callable[[Generator], list[Sample]],
    generator: Generator,
    *,
    steps: int,
    artefacts: Mapping[Artefact, float],
    rate: float = LEARNING_RATE,
) -> Iterator[int]:
    """Train a branch in place, have its average follow, and yield the number of steps after each of `steps`.

    Args:
        average: a copy of the branch without gradients.
        draw: of a step's batch, each sample with a truth.
        artefacts: kind -> strength in [0, 1] in the views.
        rate: falls over `steps` as a task's does over a stage.
    """
    optimizer = torch.optim.AdamW(branch.parameters(), weight_decay=study.weight_decay, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (WARMUP + 1)) * annealed(step / steps)
        drawn = draw(generator)
        truths = [sample.truth[None] for sample in drawn if sample.truth is not None]
        batch = tiles(drawn, truths, study.image.size, generator)
        seen = view(batch, study.augmentation, generator, artefacts=artefacts)
        optimizer.zero_grad(set_to_none=True)
        dice_cross_entropy(branch(seen.x), truth=seen.maps, weight=seen.valid).mean().backward()
        nn.utils.clip_grad_norm_(branch.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        follow(average.parameters(), branch.parameters(), averaging(DECAY, step))
        yield step + 1
