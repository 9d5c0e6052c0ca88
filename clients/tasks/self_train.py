"""`self_train`: the student learns, on a strong view, what the fused teacher says of a weak view.

The teacher is the received model: the server's average over rounds, fixed within a round. Its
pseudo-labels are hard, weighted per pixel by confidence, and held near the sources' foreground.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from clients.dataset import Sample, tiles
from clients.frames import Frame
from clients.scoring import received_maps, score_received
from clients.training import LossOf, Metrics, Seen, TaskContext, train, trained_branches
from common.augment import augment, device_shift
from common.geometry import standardise
from common.infusion import predict_maps
from common.losses import dice_cross_entropy
from common.networks import Networks
from common.study import Study
from common.tasks import SelfTrain

#: Of the simulated device shift in the teacher's extra views: mild, for what it says must hold.
TEACHER_STRENGTH = 0.3


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


def pseudo_probability(teacher: Networks, study: Study, sample: Sample, views: int, generator: Generator) -> Tensor:
    """Return the teacher's mean probability of a frame, [1, h, w], over the plain image and perturbed views.

    Where the views disagree the mean is near 0.5, and the pixel weighs little (UPL-SFDA, arXiv 2309.10244).
    """
    images = [sample.image] + [
        device_shift(sample.image[None, None], generator, TEACHER_STRENGTH)[0, 0] for _ in range(views - 1)
    ]
    maps = [predict_maps(teacher, study, image, sample.valid)["infusion"] for image in images]
    return torch.stack(maps).mean(0, keepdim=True)


def run(context: TaskContext) -> Metrics:
    """Train both branches as students and return the contract's metrics, with the teacher's score."""
    return train(context, objective)


def objective(context: TaskContext, seen: Seen) -> LossOf:
    """Return the loss under a teacher that stays as it was received, whose score is measured first."""
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, SelfTrain)
    received = received_maps(context)
    for name, value in score_received(context, received).items():
        seen[name].append(value)
    threshold = prior_threshold(received[0], context.foreground_prior, task.prior_tolerance)
    teacher = copy.deepcopy(networks)  # the students move `networks`; the teacher stays for the round
    branches = trained_branches(context)
    taught: dict[Frame, Tensor] = {}  # once a round: the teacher says the same of a frame each time
    views = context.generator("teacher")

    def loss_of(frames: Sequence[Frame], generator: Generator) -> Tensor:
        samples = [context.data.sample(frame) for frame in frames]
        for sample in samples:
            if sample.frame not in taught:
                taught[sample.frame] = pseudo_probability(teacher, study, sample, task.teacher_views, views)
        batch = tiles(samples, [taught[s.frame] for s in samples], study.image.size, generator)
        p = batch.maps
        label = (p > threshold) * batch.valid
        reach = torch.where(p > threshold, 1 - threshold, threshold)
        confidence = ((p - threshold).abs() / reach) ** task.confidence_power
        seen["confidence"].append(float((confidence * batch.valid).sum() / batch.valid.sum()))
        seen["pseudo_foreground_fraction"].append(float(label.mean()))
        total = torch.zeros(len(samples))
        for branch in branches:
            maps = torch.cat([label, confidence, batch.valid], 1)
            image, maps = augment(batch.image, maps, study.augmentation, generator, strength=task.strength)
            valid = maps[:, 2:]
            logits = getattr(networks, branch)(standardise(image, valid > 0))
            total = total + dice_cross_entropy(logits, maps[:, :1], maps[:, 1:2] * valid)
        return total / len(branches)

    return loss_of
