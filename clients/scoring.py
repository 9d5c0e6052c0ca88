"""Numbers about the model that a site received: label-free score, Dice on `val`, foreground."""

import torch
from torch import Tensor

from clients.dataset import tiles
from clients.frames import read_mask
from clients.training import Metrics, TaskContext
from common.augment import device_shift
from common.contract import FUSED
from common.geometry import from_grid, standardise
from common.infusion import fused_probability, predict_maps
from common.metrics import frame_dice
from common.tasks import AnyTask

#: Patients behind a score; more would cost a round's time and hardly move the mean.
SCORED_PATIENTS = 32
#: Perturbed views a patient, and how strong the simulated change of device is in them.
SCORE_VIEWS, SCORE_STRENGTH = 2, 0.5
#: Factor by which the mean foreground may differ from the sources' before the score falls.
FOREGROUND_TOLERANCE = 1.5


def is_fused(task: AnyTask) -> bool:
    """Whether a request of this task carries the whole fused model."""
    return set(FUSED) <= set(task.components())


def label_free_score(clean: Tensor, perturbed: Tensor, prior: float | None) -> float:
    """Score predictions without labels, in [0, 1]; higher is better.

    Args:
        clean: foreground probabilities [N, 1, S, S].
        perturbed: the same tiles under simulated device shift, [V, N, 1, S, S].
        prior: the sources' mean foreground in tiles, or None.

    The mean over patients of the soft Dice between the prediction and that under each perturbation,
    times 1 while the mean foreground is within `FOREGROUND_TOLERANCE` of the prior, and less in
    proportion beyond. Agreement on the foreground, rather than on all pixels, gives a collapsed model 0.
    """
    overlap = 2 * (clean * perturbed).sum((-3, -2, -1))
    size = (clean.square() + perturbed.square()).sum((-3, -2, -1))
    agreement = float((overlap / size.clamp(min=1.0)).mean())
    if prior is None or prior <= 0:
        return agreement
    ratio = float((clean > 0.5).float().mean()) / prior
    return agreement * min(1.0, FOREGROUND_TOLERANCE * min(ratio, 1 / max(ratio, 1e-6)))


def received_maps(context: TaskContext) -> Tensor:
    """Return the received fused model's foreground probability on tiles of unlabelled training patients.

    Always the same tiles, one a patient, so that rounds can be compared.

    Returns:
        [1 + SCORE_VIEWS, N, 1, S, S] in [0, 1], 0 in padding: the plain tiles, then the same under
        simulated device shift.
    """
    samples = [context.data.sample(frame) for frame in context.data.overview("train", SCORED_PATIENTS)]
    batch = tiles(samples, [s.valid[None].float() for s in samples], context.study.image.size, None)
    # Fixed for the study, not the round: scores of different rounds must be comparable.
    generator = torch.Generator().manual_seed(context.study.seed)
    images = [batch.image] + [device_shift(batch.image, generator, SCORE_STRENGTH) for _ in range(SCORE_VIEWS)]
    with torch.no_grad():
        maps = [fused_probability(context.networks, standardise(x, batch.valid > 0)) * batch.valid for x in images]
    return torch.stack(maps)


def score_received(context: TaskContext, maps: Tensor) -> Metrics:
    """Return `score` of the received fused model from its `received_maps`, unless too few patients stand behind it."""
    if len(context.data.site.patients("train")) < context.policy.min_patients:
        return {}
    return {"score": label_free_score(maps[0], maps[1:], context.foreground_prior)}


def fused_dice(context: TaskContext) -> Metrics:
    """Return `val_dice` of the received fused model: the mean over validation patients, on original pixels."""
    if len(context.data.site.patients("val", labelled=True)) < context.policy.min_patients:
        return {}
    values = []
    for frame in context.data.overview("val", SCORED_PATIENTS):
        sample = context.data.sample(frame)
        maps = predict_maps(context.networks, context.study, sample.image, sample.valid, baseline=False)
        values.append(frame_dice(from_grid(maps["infusion"], sample.place).numpy(), read_mask(frame)))
    return {"val_dice": sum(values) / len(values)}


def mean_foreground(context: TaskContext) -> float:
    """Return the mean foreground of the labelled training patients, in tiles, at most 1."""
    side = context.study.image.size
    truths = [context.data.labelled(frame).truth for frame in context.data.overview("train", SCORED_PATIENTS)]
    fractions = [float(t.sum()) / side**2 for t in truths if t is not None]
    return min(1.0, sum(fractions) / len(fractions))
