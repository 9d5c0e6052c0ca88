"""`infuse`: the head learns, where the branches disagree, which of them to believe.

On `calibrate` patients, which neither branch was trained on, under simulated device shift.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from clients.data.dataset import tiles
from clients.data.frames import Frame
from clients.learning.scoring import fused_dice
from clients.learning.training import LossOf, Metrics, Seen, TaskContext, note, train
from common.augment import augment
from common.geometry import standardise
from common.infusion import fuse
from common.tasks import Infuse


def run(context: TaskContext) -> Metrics:
    """Train the infusion head with frozen branches and return the contract's metrics."""
    return train(context, objective, "calibrate")


def objective(context: TaskContext, seen: Seen) -> LossOf:
    """Return the head's loss on labelled frames; the received model is measured first."""
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, Infuse)
    note(seen, fused_dice(context))

    def loss_of(frames: Sequence[Frame], generator: Generator) -> Tensor:
        samples = [context.data.labelled(frame) for frame in frames]
        batch = tiles(
            samples,
            [s.truth[None] for s in samples if s.truth is not None],
            study.image.size,
            generator,
        )
        maps = torch.cat([batch.maps, batch.valid], 1)
        image, moved = augment(batch.image, maps, study.augmentation, generator, strength=task.strength)
        truth, valid = moved[:, :1], moved[:, 1:]
        x = standardise(image, valid > 0)
        with torch.no_grad():
            source, target = networks.source_branch(x), networks.target_branch(x)
        fusion = fuse(networks.infusion_head, source, target)
        seen["mean_weight"].append(float((fusion.weight.detach() * valid).sum() / valid.sum().clamp(min=1)))

        def mean_within(values: Tensor) -> Tensor:
            return (values * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3)).clamp(min=1)

        def cross_entropy(p: Tensor) -> Tensor:
            return mean_within(F.binary_cross_entropy(p.clamp(1e-6, 1 - 1e-6), truth, reduction="none"))

        intersection = (fusion.infusion * truth * valid).sum((1, 2, 3))
        size = ((fusion.infusion + truth) * valid).sum((1, 2, 3))
        dice = 1 - (2 * intersection + 1) / (size + 1)
        # The branches' own terms calibrate the temperatures (Guo et al. 2017, arXiv 1706.04599).
        return (
            cross_entropy(fusion.infusion)
            + dice
            + cross_entropy(fusion.source_branch)
            + cross_entropy(fusion.target_branch)
            + task.shrinkage * mean_within((2 * fusion.weight - 1).square())
        )

    return loss_of
