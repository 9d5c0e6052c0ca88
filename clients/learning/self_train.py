"""`self_train`: the student learns, on a strong view, what the teacher says of the plain image.

The teacher is the model as it was received. Its pseudo-labels are hard, weighted per pixel by confidence, held near the
sources' foreground, and made once a round.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from clients.data.dataset import tiles
from clients.data.frames import Frame
from clients.learning.scoring import SCORED_PATIENTS, mean_area, received_views, score_received
from clients.learning.training import Loss, Objective, TaskContext
from clients.learning.view import View, view
from common.components import branches_of
from common.infusion import predict_maps
from common.losses import dice_cross_entropy
from common.tasks import SelfTrain

#: What a pixel weighs at least.
LEAST_CONFIDENCE = 1e-3


class Teacher:
    """The model as it was received, and what it says of each frame: of the whole image, the same each time.

    Attributes:
        networks: a copy, since the students move theirs.
        taught: frame -> its foreground probability, [h, w] in [0, 1] and 0 on padding.
    """

    def __init__(self, context: TaskContext) -> None:
        assert isinstance(context.task, SelfTrain)
        self._study, self._data = context.study, context.data
        self.networks = copy.deepcopy(context.networks)
        branches = branches_of(context.task.trains)
        self.predictor = "infusion" if len(branches) > 1 else branches[0]  # who learns is who teaches
        self.taught: dict[Frame, Tensor] = {}

    def says(self, frame: Frame) -> Tensor:
        """Return a frame's foreground probability, see `taught`."""
        if frame not in self.taught:
            sample = self._data.sample(frame)
            maps = predict_maps(self.networks, self._study, sample.image, sample.valid, [self.predictor])
            self.taught[frame] = maps[self.predictor] * sample.valid
        return self.taught[frame]


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


def objective(
    context: TaskContext, student_view: Callable[..., View] = view, teacher: Teacher | None = None
) -> Objective:
    """Return the students' loss under their teacher; the score of the received model is measured first.

    Args:
        student_view: what a student sees of a batch, called as `view` is.
        teacher: of the context; default: the model as it was received.
    """
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, SelfTrain)
    teacher = teacher or Teacher(context)
    branches = branches_of(task.trains)
    received = received_views(context)
    if teacher.predictor == "infusion":  # the score asked it already
        teacher.taught |= {frame: views.plain for frame, views in received.items()}
    overview = [teacher.says(frame) for frame in context.data.overview("train", SCORED_PATIENTS)]
    threshold = prior_threshold(overview, context.foreground_prior, task.prior_tolerance, study.image.size)

    def loss(frames: Sequence[Frame], generator: Generator) -> Loss:
        samples = [context.data.sample(frame) for frame in frames]
        batch = tiles(samples, [teacher.says(frame)[None] for frame in frames], study.image.size, generator)
        p = batch.maps
        label = (p > threshold) * batch.valid
        reach = torch.where(p > threshold, 1 - threshold, threshold)
        # an image of which every pixel weighs next to nothing would leave the batch's gradients to the others
        confidence = (((p - threshold).abs() / reach) ** task.confidence_power).clamp(min=LEAST_CONFIDENCE)
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
