"""`self_train`: the student learns, on a strong view, what the fused teacher says of a weak view.

The teacher is the received model, fixed within a round. Its
pseudo-labels are hard, weighted per pixel by confidence, and held near the sources' foreground.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from clients.data.dataset import tiles
from clients.data.frames import Frame
from clients.learning.scoring import mean_area, received_views, score_received
from clients.learning.training import Loss, Objective, TaskContext
from clients.learning.view import view
from common.components import branches_of
from common.infusion import predict_maps
from common.losses import dice_cross_entropy
from common.tasks import SelfTrain


def prior_threshold(maps: Sequence[Tensor], prior: float | None, tolerance: float, side: int) -> float:
    """Return the threshold that keeps the pseudo-labels' mean foreground near the prior.

    Args:
        maps: foreground probabilities of frames, [h, w] each.
        prior: expected mean foreground of a frame, in tiles; None leaves the threshold at 0.5.
        tolerance: factor by which the mean may differ before the threshold moves.
        side: of a tile in pixels.

    The class-ratio guard against collapse, blow-up and size bias: 0.5 unless it leads outside the
    tolerance, and then the nearest threshold in [0.1, 0.9] that leads inside.
    """
    if prior is None:
        return 0.5
    candidates = sorted((0.5 + 0.02 * i for i in range(-20, 21)), key=lambda t: abs(t - 0.5))
    for threshold in candidates:
        if prior / tolerance <= mean_area(maps, threshold, side) <= prior * tolerance:
            return threshold
    return min(candidates, key=lambda t: abs(mean_area(maps, t, side) - prior))


def objective(context: TaskContext) -> Objective:
    """Return the students' loss on the received model's pseudo-labels, whose score is measured first."""
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, SelfTrain)
    received = received_views(context)
    # Once a round, on the whole image: the teacher says the same of a frame each time.
    taught = {frame: views.plain for frame, views in received.items()}
    threshold = prior_threshold(list(taught.values()), context.foreground_prior, task.prior_tolerance, study.image.size)
    teacher = copy.deepcopy(networks)  # the students move `networks`; the teacher stays for the round
    branches = branches_of(task.trains)

    def loss(frames: Sequence[Frame], generator: Generator) -> Loss:
        samples = [context.data.sample(frame) for frame in frames]
        for sample in samples:
            if sample.frame not in taught:
                taught[sample.frame] = predict_maps(teacher, study, sample.image, sample.valid)["infusion"]
        batch = tiles(samples, [taught[s.frame][None] for s in samples], study.image.size, generator)
        p = batch.maps
        label = (p > threshold) * batch.valid
        reach = torch.where(p > threshold, 1 - threshold, threshold)
        confidence = ((p - threshold).abs() / reach) ** task.confidence_power
        labelled = replace(batch, maps=torch.cat([label, confidence], 1))
        total = torch.zeros(len(samples))
        for branch in branches:
            seen = view(labelled, study.augmentation, generator, task.strength)
            logits = networks.branch(branch)(seen.x)
            total = total + dice_cross_entropy(logits, truth=seen.maps[:, :1], weight=seen.maps[:, 1:] * seen.valid)
        return Loss(
            total / len(branches),
            {
                "confidence": float((confidence * batch.valid).sum() / batch.valid.sum()),
                "pseudo_foreground_fraction": float(label.mean()),
            },
        )

    return Objective(loss, score_received(context, list(received.values())))
