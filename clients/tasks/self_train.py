"""`self_train`: the student learns, on a strong view, what the fused teacher says of a weak view.

The teacher is the received model: the server's average over rounds, fixed within a round. Its
pseudo-labels are hard, weighted per pixel by confidence, and held near the sources' foreground.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from clients.dataset import tiles
from clients.frames import Frame
from clients.scoring import received_maps, score_received
from clients.training import Metrics, TaskContext, fit, trained_branches, trained_modules
from common.augment import augment
from common.geometry import standardise
from common.infusion import fused_probability
from common.losses import dice_cross_entropy
from common.tasks import SelfTrain


def prior_threshold(maps: Tensor, prior: float | None, tolerance: float) -> float:
    """Return the threshold that keeps the pseudo-labels' mean foreground near the prior.

    Args:
        maps: foreground probabilities of tiles, [N, 1, S, S].
        prior: expected mean foreground of a tile; None leaves the threshold at 0.5.
        tolerance: factor by which the mean may differ before the threshold moves.

    The class-ratio guard against collapse and blow-up: 0.5 unless it leads outside the tolerance, and
    then the nearest threshold in [0.1, 0.9] that leads inside.
    """
    if prior is None:
        return 0.5

    def foreground(threshold: float) -> float:
        return float((maps > threshold).float().mean())

    candidates = sorted((0.5 + 0.02 * i for i in range(-20, 21)), key=lambda t: abs(t - 0.5))
    for threshold in candidates:
        if prior / tolerance <= foreground(threshold) <= prior * tolerance:
            return threshold
    return min(candidates, key=lambda t: abs(foreground(t) - prior))


def run(context: TaskContext) -> Metrics:
    """Train both branches as students and return the contract's metrics, with the teacher's score."""
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, SelfTrain)
    received = received_maps(context)
    metrics = score_received(context, received)
    threshold = prior_threshold(received[0], context.foreground_prior, task.prior_tolerance)
    teacher = copy.deepcopy(networks)  # the students move `networks`; the teacher stays for the round
    branches = trained_branches(context)
    sums = {"confidence": 0.0, "pseudo_foreground_fraction": 0.0}

    def loss_of(frames: Sequence[Frame], generator: Generator) -> Tensor:
        samples = [context.data.sample(frame) for frame in frames]
        batch = tiles(samples, [s.valid[None].float() for s in samples], study.image.size, generator)
        with torch.no_grad():
            p = fused_probability(teacher, standardise(batch.image, batch.valid > 0))
        label = (p > threshold) * batch.valid
        reach = torch.where(p > threshold, 1 - threshold, threshold)
        confidence = ((p - threshold).abs() / reach) ** task.confidence_power
        sums["confidence"] += float((confidence * batch.valid).sum() / batch.valid.sum())
        sums["pseudo_foreground_fraction"] += float(label.mean())
        total = torch.zeros(len(samples))
        for branch in branches:
            maps = torch.cat([label, confidence, batch.valid], 1)
            image, maps = augment(batch.image, maps, study.augmentation, generator, strength=task.strength)
            valid = maps[:, 2:]
            logits = getattr(networks, branch)(standardise(image, valid > 0))
            total = total + dice_cross_entropy(logits, maps[:, :1], maps[:, 1:2] * valid)
        return total / len(branches)

    loss = fit(context, task, trained_modules(context), loss_of)
    return metrics | {"loss": loss} | {name: value / task.steps for name, value in sums.items()}
