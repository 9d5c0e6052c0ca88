"""`supervise`: Dice + cross-entropy on labelled training patients."""

from collections.abc import Sequence

import torch
from torch import Generator

from clients.data.frames import Frame
from clients.learning.scoring import is_fused, mean_foreground, received_dice
from clients.learning.training import Loss, Numbers, Objective, TaskContext
from clients.learning.view import labelled_tiles, view
from common.components import branches_of
from common.losses import dice_cross_entropy
from common.tasks import Supervise


def objective(context: TaskContext) -> Objective:
    """Return the mean over branches of `dice + cross-entropy`, each branch on views of its own."""
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, Supervise)
    branches = branches_of(task.trains)

    def loss(frames: Sequence[Frame], generator: Generator) -> Loss:
        total = torch.zeros(len(frames))
        for branch in branches:
            batch = labelled_tiles(context.data, frames, study.image.size, generator)
            seen = view(batch, study.augmentation, generator, artefacts=task.artefacts)
            logits = networks.branch(branch)(seen.x)
            total = total + dice_cross_entropy(logits, truth=seen.maps, weight=seen.valid)
        return Loss(total / len(branches))

    wanted = study.metrics_of(context.round.stage, "source")
    measured: Numbers = {}
    if "foreground_fraction" in wanted:
        measured |= mean_foreground(context)
    if "val_dice" in wanted:  # a model that is worse on the labelled probe is not released
        measured |= received_dice(context, "infusion" if is_fused(task) else branches[0])
    return Objective(loss, measured)
