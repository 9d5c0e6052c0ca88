"""Numbers about the model that a site received: label-free score, Dice on `val`, foreground."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.data.dataset import Sample
from clients.data.frames import Frame, read_mask
from clients.learning.training import Measured, Numbers, TaskContext
from common.augment import device_shift
from common.components import FUSED
from common.geometry import from_grid
from common.infusion import predict_maps
from common.metrics import frame_dice
from common.tasks import Task

#: Patients behind a score; more would cost a round's time and hardly move the mean. Another number sorts them anew
#: (`clients.governance.cohorts`).
SCORED_PATIENTS = 32
#: How strong the simulated change of device is in a patient's second view.
SCORE_STRENGTH = 0.5
#: Factor by which the mean foreground may differ from the sources' before the score falls. Without a common
#: spacing the same anatomy is larger or smaller by how deep the image reaches.
FOREGROUND_TOLERANCE = {"spacing": 1.5, "letterbox": 3.0}


def is_fused(task: Task) -> bool:
    """Whether a request of this task carries the whole fused model."""
    return set(FUSED) <= set(task.components())


@dataclass(frozen=True)
class Views:
    """The received model's foreground probability on one frame, [h, w] in [0, 1] and 0 on padding.

    Attributes:
        plain: of the image as it is.
        shifted: of the image under simulated device shift.
    """

    plain: Tensor
    shifted: Tensor


def mean_area(maps: Sequence[Tensor], threshold: float, side: int) -> float:
    """Return the mean foreground of maps [h, w], in tiles of `side` x `side` pixels.

    An area on the study's grid, not a share of the image: devices show more or less around the anatomy.
    """
    return sum(float((p > threshold).sum()) / side**2 for p in maps) / len(maps)


def soft_dice(p: Tensor, q: Tensor) -> float:
    """Return how far two maps of probabilities agree on the foreground, in [0, 1]; 0 where neither has any."""
    return 2 * float((p * q).sum()) / max(1.0, float((p.square() + q.square()).sum()))


def label_free_score(views: Sequence[Views], prior: float | None, side: int, tolerance: float) -> float:
    """Score predictions without labels, in [0, 1]; higher is better.

    Args:
        views: one a patient.
        prior: the sources' mean foreground in tiles, or None.
        side: of a tile in pixels.
        tolerance: factor by which the mean foreground may differ from the prior.

    The mean over patients of the soft Dice between the prediction and that under simulated device
    shift, times 1 while the mean foreground is within `tolerance` of the prior, and less in proportion
    beyond. Agreement on the foreground, rather than on all pixels, gives a collapsed model 0.
    """
    agreement = sum(soft_dice(view.plain, view.shifted) for view in views) / len(views)
    if prior is None or prior <= 0:
        return agreement
    ratio = mean_area([view.plain for view in views], 0.5, side) / prior
    return agreement * min(1.0, tolerance * min(ratio, 1 / max(ratio, 1e-6)))


def received_views(context: TaskContext) -> dict[Frame, Views]:
    """Return the received fused model's predictions on one frame of each of many training patients who count.

    Always the same frames under the same shift, so that rounds can be compared; whole images, since a
    tile of a deep one may hold nothing but noise.
    """
    # Fixed for the study, not the round: scores of different rounds must be comparable.
    generator = torch.Generator().manual_seed(context.study.seed)
    views = {}
    for frame in context.data.counted_overview("train", SCORED_PATIENTS):
        sample = context.data.sample(frame)
        shifted = device_shift(sample.image[None, None], generator, SCORE_STRENGTH)[0, 0]
        maps = [
            predict_maps(context.networks, context.study, image, sample.valid, ["infusion"])["infusion"] * sample.valid
            for image in (sample.image, shifted)
        ]
        views[frame] = Views(*maps)
    return views


def score_received(context: TaskContext, views: Mapping[Frame, Views]) -> Numbers:
    """Return `score` of the received fused model from its `received_views`, one a patient; of nobody, none."""
    if not views:
        return {}
    grid = context.study.image
    tolerance = FOREGROUND_TOLERANCE[grid.geometry]
    score = label_free_score(list(views.values()), context.foreground_prior, grid.size, tolerance)
    return {"score": Measured(score, len(views))}


def sample_dice(p: Tensor, sample: Sample) -> float:
    """Return the Dice of a map [h, w] on the study's grid with the frame's mask, on the image's own pixels."""
    return frame_dice(from_grid(p, sample.place).numpy(), read_mask(sample.frame))


def received_dice(context: TaskContext, predictor: str = "infusion") -> Numbers:
    """Return `val_dice` of the received model, or of one branch: the mean over `val` patients, on original pixels."""
    values = []
    for frame in context.data.counted_overview("val", SCORED_PATIENTS):
        sample = context.data.sample(frame)
        p = predict_maps(context.networks, context.study, sample.image, sample.valid, [predictor])[predictor]
        values.append(sample_dice(p, sample))
    return {"val_dice": Measured(sum(values) / len(values), len(values))} if values else {}


def mean_foreground(context: TaskContext) -> Numbers:
    """Return `foreground_fraction`: the mean foreground of labelled training patients, see `mean_area`, at most 1.

    Of all who count: lesions differ so much in size that a sample of 32 patients was off by half on real data.
    """
    samples = [context.data.labelled(frame) for frame in context.data.counted_overview("train")]
    if not samples:
        return {}
    truths = [sample.truth for sample in samples if sample.truth is not None]
    area = mean_area(truths, 0.5, context.study.image.size)
    return {"foreground_fraction": Measured(min(1.0, area), len(samples))}
