"""Class-ratio adaptation: sure predictions on the target, as much foreground as at the sources, no pseudo-labels.

Bateson et al. 2022, arXiv 2108.03152. With `p` the prediction, `q` its mean over the pixels and `r` the sources' share:

    L = mean over pixels of -(w p log p + (1 - w) (1 - p) log(1 - p)) + weight * KL(q || r)

Two things differ from the paper. It adapts where no source is at hand; here the sources' labels stay beside it, as they
do for every arm. And its ratio is known for each image; here it is the sources' mean, which a batch has to meet and not
a single image: of lesions that differ tenfold in area it would be wrong for nearly every one.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from clients.data.dataset import tiles
from clients.data.frames import Frame
from clients.learning.scoring import received_views, score_received
from clients.learning.training import Loss, Objective, TaskContext
from clients.learning.view import view
from common.artefact_settings import Artefacts
from common.components import BRANCH_PARTS, FUSED, Role, branches_of
from common.errors import StudyError
from common.losses import mean_within
from common.metric import LOSS, SCORE, Metric
from common.tasks import TrainingTask


class ClassRatio(TrainingTask):
    """Entropy of the predictions and their distance from the sources' mean foreground, on unlabelled patients.

    Attributes:
        foreground_weight: `w`, of the foreground's part of the entropy; the background has the rest.
        ratio_weight: `weight` of the divergence; both as the paper's published settings have them.
        strength, artefacts: of the view, as in `SelfTrain`.
    """

    implementation: ClassVar[str] = __name__
    meaning: ClassVar[str] = "makes predictions on your images surer, with the labelled sites' share of foreground"
    roles: ClassVar[tuple[Role, ...]] = ("target",)
    trainable: ClassVar[tuple[str, ...]] = BRANCH_PARTS
    reads: ClassVar[tuple[str, ...]] = FUSED
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss": LOSS,
        "predicted_fraction": Metric(0, 1, "mean share of the image that the model in training marks on your images"),
        "score": SCORE,
    }
    not_private: ClassVar[str] = "the foreground of a batch is compared as one, so one patient moves others' gradients"
    selects_release: ClassVar[bool] = True
    task: Literal["class_ratio"] = "class_ratio"
    foreground_weight: float = Field(default=0.9, ge=0, le=1)
    ratio_weight: float = Field(default=1.0, ge=0)
    strength: float = Field(default=0.7, ge=0, le=1)
    artefacts: Artefacts = Field(default={})


def weighted_entropy(logits: Tensor, valid: Tensor, foreground_weight: float) -> Tensor:
    """Return the mean entropy of each image's pixels, [B] in nats; `logits` and `valid` are [B, 1, H, W]."""
    p = logits.sigmoid()
    foreground, background = p * F.logsigmoid(logits), (1 - p) * F.logsigmoid(-logits)
    pixels = -(foreground_weight * foreground + (1 - foreground_weight) * background)
    return mean_within(pixels, valid)


def ratio_divergence(logits: Tensor, valid: Tensor, ratio: float) -> Tensor:
    """Return `KL(q || ratio)` of a batch's mean foreground `q`, a share of a tile as the sources' is; one number."""
    q = (logits.sigmoid() * valid).mean().clamp(1e-6, 1 - 1e-6)
    return q * (q / ratio).log() + (1 - q) * ((1 - q) / (1 - ratio)).log()


def objective(context: TaskContext) -> Objective:
    """Return the loss of the received model's own predictions, whose score is measured first.

    Raises:
        StudyError: if no source has sent its mean foreground yet.
    """
    task, study, networks, prior = context.task, context.study, context.networks, context.foreground_prior
    assert isinstance(task, ClassRatio)
    if prior is None:
        raise StudyError("`class_ratio` expects the sources' mean foreground, found none; have `supervise` come before")
    ratio = min(max(prior, 1e-4), 1 - 1e-4)
    branches = branches_of(task.trains)

    def loss(frames: Sequence[Frame], generator: Generator) -> Loss:
        samples = [context.data.sample(frame) for frame in frames]
        batch = tiles(samples, [s.image[None][:0] for s in samples], study.image.size, generator)
        total, marked = torch.zeros(len(frames)), 0.0
        for branch in branches:
            seen = view(batch, study.augmentation, generator, task.strength, task.artefacts)
            logits = networks.branch(branch)(seen.x)
            entropy = weighted_entropy(logits, seen.valid, task.foreground_weight)
            total = total + entropy + task.ratio_weight * ratio_divergence(logits, seen.valid, ratio)
            marked += float((logits.detach().sigmoid() * seen.valid).mean())
        return Loss(total / len(branches), {"predicted_fraction": marked / len(branches)})

    return Objective(loss, score_received(context, received_views(context)))
