"""`self_train`: the student learns, on a strong view, what the fused teacher says of a weak view.

The teacher is the received model: the server's average over rounds, fixed within a round. Its
pseudo-labels are hard, weighted per pixel by confidence, and held near the sources' foreground.
"""

import torch
from torch import Tensor

from clients.dataset import Sample, tiles
from clients.frames import Frame
from clients.scoring import score_received
from clients.training import Metrics, TaskContext, fit, trained_branches, trained_modules
from common.augment import augment
from common.geometry import standardise
from common.infusion import predict_maps
from common.losses import dice_cross_entropy
from common.tasks import SelfTrain


def prior_threshold(maps: list[Tensor], prior: float | None, tolerance: float, tile_pixels: int) -> float:
    """Return the threshold that keeps the pseudo-labels' mean foreground near the prior.

    Args:
        maps: foreground probabilities [h, w] of the frames of this round.
        prior: expected mean foreground, in tiles; None leaves the threshold at 0.5.
        tolerance: factor by which the mean may differ before the threshold moves.

    The class-ratio guard against collapse and blow-up: 0.5 unless it leads outside the tolerance, and
    then the nearest threshold in [0.1, 0.9] that leads inside.
    """
    if prior is None:
        return 0.5
    pixels = torch.cat([m.flatten() for m in maps])

    def foreground(threshold: float) -> float:
        return float((pixels > threshold).sum()) / len(maps) / tile_pixels

    candidates = sorted((0.5 + 0.02 * i for i in range(-20, 21)), key=lambda t: abs(t - 0.5))
    for threshold in candidates:
        if prior / tolerance <= foreground(threshold) <= prior * tolerance:
            return threshold
    return min(candidates, key=lambda t: abs(foreground(t) - prior))


def run(context: TaskContext) -> Metrics:
    """Train both branches as students and return the contract's metrics, with the teacher's score."""
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, SelfTrain)
    metrics = score_received(context)
    generator = context.generator("views")
    side = study.image.size
    plan = [context.data.draw("train", study.batch_size, generator) for _ in range(task.steps)]
    teacher: dict[Frame, tuple[Sample, Tensor]] = {}
    for frame in dict.fromkeys(frame for frames in plan for frame in frames):
        sample = context.data.sample(frame)
        teacher[frame] = (
            sample,
            predict_maps(networks, study, sample.image, sample.valid)["infusion"],
        )
    seen = [p * s.valid for s, p in teacher.values()]
    threshold = prior_threshold(seen, context.foreground_prior, task.prior_tolerance, side * side)

    def pseudo(frame: Frame) -> Tensor:
        """[3, h, w]: hard label, confidence weight, validity."""
        sample, p = teacher[frame]
        reach = torch.where(p > threshold, 1 - threshold, threshold)
        confidence = ((p - threshold).abs() / reach) ** task.confidence_power
        return torch.stack([(p > threshold).float(), confidence, sample.valid.float()])

    labels = {frame: pseudo(frame) for frame in teacher}
    branches = trained_branches(context)

    def losses(step: int) -> Tensor:
        samples = [teacher[frame][0] for frame in plan[step]]
        total = torch.zeros(len(samples))
        for branch in branches:
            batch = tiles(samples, [labels[frame] for frame in plan[step]], side, generator)
            image, maps = augment(batch.image, batch.maps, study.augmentation, generator, strength=task.strength)
            label, weight, valid = maps[:, :1], maps[:, 1:2], maps[:, 2:]
            logits = getattr(networks, branch)(standardise(image, valid > 0))
            total = total + dice_cross_entropy(logits, label, weight * valid)
        return total / len(branches)

    metrics["confidence"] = sum(float(x[1].mean()) for x in labels.values()) / len(labels)
    metrics["pseudo_foreground_fraction"] = sum(float(x[0].sum()) for x in labels.values()) / len(labels) / side**2
    return metrics | {"loss": fit(context, task, trained_modules(context), losses)}
