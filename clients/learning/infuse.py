"""`infuse`: the head learns, where the branches disagree, which of them to believe.

On `calibrate` patients, which neither branch was trained on, under simulated device shift.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from clients.data.frames import Frame
from clients.learning.scoring import received_dice
from clients.learning.training import Loss, Objective, TaskContext
from clients.learning.view import labelled_tiles, view
from common.infusion import Fusion, fuse
from common.losses import mean_within
from common.tasks import Infuse


def fusion_loss(fusion: Fusion, truth: Tensor, valid: Tensor, shrinkage: float, share: float) -> Tensor:
    """Return Dice and cross-entropy of the fused prediction, and what holds the head near a fixed share, [B].

    Args:
        truth, valid: [B, 1, H, W] in {0, 1}; `valid` is 0 on padding.
        shrinkage: weight of the penalty `4 (w - share)^2`.
    """

    def cross_entropy(p: Tensor) -> Tensor:
        return mean_within(F.binary_cross_entropy(p.clamp(1e-6, 1 - 1e-6), truth, reduction="none"), valid)

    intersection = (fusion.infusion * truth * valid).sum((1, 2, 3))
    size = ((fusion.infusion + truth) * valid).sum((1, 2, 3))
    dice = 1 - (2 * intersection + 1) / (size + 1)
    # The branches' own terms calibrate the temperatures (Guo et al. 2017, arXiv 1706.04599).
    return (
        cross_entropy(fusion.infusion)
        + dice
        + cross_entropy(fusion.source_branch)
        + cross_entropy(fusion.target_branch)
        + shrinkage * mean_within((2 * (fusion.weight - share)).square(), valid)
    )


def objective(context: TaskContext) -> Objective:
    """Return the head's loss on labelled frames; the received model is measured first."""
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, Infuse)

    def loss(frames: Sequence[Frame], generator: Generator) -> Loss:
        batch = labelled_tiles(context.data, frames, study.image.size, generator)
        seen = view(batch, study.augmentation, generator, task.strength)
        truth, valid = seen.maps, seen.valid
        with torch.no_grad():
            source, target = networks.source_branch(seen.x), networks.target_branch(seen.x)
        fusion = fuse(networks.infusion_head, source, target)
        total = fusion_loss(fusion, truth, valid, task.shrinkage, study.source_share)
        mean_weight = (fusion.weight.detach() * valid).sum() / valid.sum().clamp(min=1)
        return Loss(total, {"mean_weight": float(mean_weight)})

    return Objective(loss, received_dice(context))
