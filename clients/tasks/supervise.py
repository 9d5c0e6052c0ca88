"""`supervise`: Dice + cross-entropy on labelled training patients."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from clients.dataset import tiles
from clients.frames import Frame
from clients.scoring import fused_dice, is_fused, mean_foreground
from clients.training import Metrics, TaskContext, fit, trained_branches, trained_modules
from common.augment import augment
from common.geometry import standardise
from common.losses import dice_cross_entropy
from common.tasks import Supervise


def run(context: TaskContext) -> Metrics:
    """Train the task's branches, each on views of its own, and return the contract's metrics."""
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, Supervise)
    metrics: Metrics = {}
    if study.privacy is None:  # no number leaves under privacy, so none is measured
        metrics["foreground_fraction"] = mean_foreground(context)
        if is_fused(task):
            metrics |= fused_dice(context)  # of the model as it was received
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
            image, moved = augment(batch.image, maps, study.augmentation, generator)
            truth, valid = moved[:, :1], moved[:, 1:]
            logits = getattr(networks, branch)(standardise(image, valid > 0))
            total = total + dice_cross_entropy(logits, truth, valid)
        return total / len(branches)

    return metrics | {"loss": fit(context, task, trained_modules(context), loss_of)}
