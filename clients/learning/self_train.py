"""`self_train`: the student learns, on a strong view, what the fused teacher says of a weak view.

The teacher begins each round as the received model and follows the students as their running average, or stays
where it was. Its pseudo-labels are hard, weighted per pixel by confidence, held near the sources' foreground, and made
once a round or anew every few steps.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from clients.data.dataset import tiles
from clients.data.frames import Frame
from clients.learning.scoring import SCORED_PATIENTS, mean_area, received_views, score_received, visible_widths
from clients.learning.training import Loss, Objective, TaskContext, averaging, follow
from clients.learning.view import View, view
from common.components import branches_of
from common.infusion import predict_maps
from common.losses import dice_cross_entropy
from common.tasks import SelfTrain


def prior_threshold(
    maps: Sequence[Tensor], prior: float | None, tolerance: float, side: int, widths: Sequence[int] = ()
) -> float:
    """Return the threshold that keeps the pseudo-labels' mean foreground near the prior.

    Args:
        maps: foreground probabilities of frames, [h, w] each.
        prior: expected mean foreground of a frame, in tiles; None leaves the threshold at 0.5.
        tolerance: factor by which the mean may differ before the threshold moves.
        side: of a tile in pixels.
        widths: columns that each image shows, see `mean_area`.

    The class-ratio guard against collapse, blow-up and size bias: 0.5 unless it leads outside the
    tolerance, and then the nearest threshold in [0.1, 0.9] that leads inside.
    """
    if prior is None:
        return 0.5
    candidates = sorted((0.5 + 0.02 * i for i in range(-20, 21)), key=lambda t: abs(t - 0.5))
    for threshold in candidates:
        if prior / tolerance <= mean_area(maps, threshold, side, widths) <= prior * tolerance:
            return threshold
    return min(candidates, key=lambda t: abs(mean_area(maps, t, side, widths) - prior))


def objective(context: TaskContext, student_view: Callable[..., View] = view) -> Objective:
    """Return the students' loss under a teacher that begins as it was received, whose score is measured first.

    Args:
        student_view: what a student sees of a batch, called as `view` is.
    """
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, SelfTrain)
    received = received_views(context)
    teacher = copy.deepcopy(networks)  # the students move `networks`
    branches = branches_of(task.trains)
    predictor = "infusion" if len(branches) > 1 else branches[0]  # who learns is who teaches

    def says(frame: Frame) -> Tensor:
        sample = context.data.sample(frame)
        return predict_maps(teacher, study, sample.image, sample.valid, [predictor])[predictor] * sample.valid

    # On the whole image, and the same of a frame each time until it is made anew.
    taught = {
        frame: received[frame].plain if len(branches) > 1 and frame in received else says(frame)
        for frame in context.data.overview("train", SCORED_PATIENTS)
    }
    widths = visible_widths(study, map(context.data.sample, taught))
    threshold = prior_threshold(
        list(taught.values()), context.foreground_prior, task.prior_tolerance, study.image.size, widths
    )
    steps = itertools.count()

    def teach(step: int) -> None:
        """Have the teacher follow the step that the students took last."""
        if step and task.teacher_decay < 1:
            follow(teacher.parameters(), networks.parameters(), averaging(task.teacher_decay, step))
        if step and task.remake_every and step % task.remake_every == 0:
            taught.clear()

    def loss(frames: Sequence[Frame], generator: Generator) -> Loss:
        teach(next(steps))
        samples = [context.data.sample(frame) for frame in frames]
        for frame in frames:
            if frame not in taught:
                taught[frame] = says(frame)
        batch = tiles(samples, [taught[s.frame][None] for s in samples], study.image.size, generator)
        p = batch.maps
        label = (p > threshold) * batch.valid
        reach = torch.where(p > threshold, 1 - threshold, threshold)
        confidence = ((p - threshold).abs() / reach) ** task.confidence_power
        labelled = replace(batch, maps=torch.cat([label, confidence], 1))
        total = torch.zeros(len(samples))
        for branch in branches:
            seen = student_view(labelled, study.augmentation, generator, task.strength, task.artefacts)
            logits = networks.branch(branch)(seen.x)
            total = total + dice_cross_entropy(logits, truth=seen.maps[:, :1], weight=seen.maps[:, 1:] * seen.valid)
        return Loss(
            total / len(branches),
            {
                "confidence": float((confidence * batch.valid).sum() / batch.valid.sum()),
                "pseudo_foreground_fraction": float(label.mean()),
            },
        )

    return Objective(loss, score_received(context, received))
