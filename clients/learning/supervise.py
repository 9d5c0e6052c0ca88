"""`supervise`: Dice + cross-entropy on labelled training patients."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from clients.data.dataset import tiles
from clients.data.frames import Frame
from clients.learning.scoring import fused_dice, is_fused, mean_foreground
from clients.learning.training import LossOf, Metrics, Seen, TaskContext, note, train, trained_branches
from common.augment import augment
from common.geometry import standardise
from common.losses import dice_cross_entropy
from common.tasks import Supervise


def run(context: TaskContext) -> Metrics:
    """Train the task's branches, each on views of its own, and return the contract's metrics."""
    return train(context, objective)


def objective(context: TaskContext, seen: Seen) -> LossOf:
    """Return the loss on labelled frames; the received model is measured first."""
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, Supervise)
    if study.privacy is None:  # no number leaves under privacy, so none is measured
        seen["foreground_fraction"].append(mean_foreground(context))
        if is_fused(task):
            note(seen, fused_dice(context))  # of the model as it was received
    branches = trained_branches(context)

    def loss_of(frames: Sequence[Frame], generator: Generator) -> Tensor:
        samples = [context.data.labelled(frame) for frame in frames]
        total = torch.zeros(len(samples))
        for branch in branches:
            batch = tiles(
                samples,
                [s.truth[None] for s in samples if s.truth is not None],
                study.image.size,
                generator,
            )
            maps = torch.cat([batch.maps, batch.valid], 1)
            image, moved = augment(batch.image, maps, study.augmentation, generator, artefacts=task.artefacts)
            truth, valid = moved[:, :1], moved[:, 1:]
            logits = getattr(networks, branch)(standardise(image, valid > 0))
            total = total + dice_cross_entropy(logits, truth, valid)
        return total / len(branches)

    return loss_of
