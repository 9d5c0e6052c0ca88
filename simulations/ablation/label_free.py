"""Scores of a model without a target's labels, each a plain function of its predictions; higher is better for all.

A map is a foreground probability on the study's grid, [h, w] in [0, 1] and 0 on padding, one a patient. What stands
here is what others have proposed for the choice of a model on an unlabelled domain; the product's own score is
`clients.learning.scoring.label_free_score`.
"""

from collections.abc import Sequence
from statistics import mean, median

import torch
from torch import Tensor

from clients.learning.scoring import mean_area, soft_dice
from common.infusion import entropy

Maps = Sequence[Tensor]


def agreement(maps: Maps, others: Maps) -> float:
    """Return the mean soft Dice with other maps of the same images, in [0, 1].

    With the average of all candidates in the place of `others` it is much like EnsV (Hu et al., NeurIPS 2024 datasets
    and benchmarks, openreview rI7kbFTSpr), which avoids the worst candidate and prefers what most have in common.
    """
    return mean(soft_dice(p, q) for p, q in zip(maps, others, strict=True))


def certainty(maps: Maps, valid: Sequence[Tensor]) -> float:
    """Return the negative mean entropy of pixels in nats, at most 0 (Morerio et al. 2018, arXiv 1711.10288).

    Args:
        valid: where each image is, [h, w] bool.

    A model that marks nothing anywhere is the surest of all.
    """
    return -mean(float(entropy(p)[v].mean()) for p, v in zip(maps, valid, strict=True))


def information(maps: Maps, valid: Sequence[Tensor]) -> float:
    """Return the mutual information of pixel and label in nats: entropy of the mean less the mean entropy.

    Krause et al. 2010 (NIPS), as a validator in Musgrave et al. 2022, arXiv 2208.07360. Unlike `certainty` it is 0 for
    a model that says the same everywhere.
    """
    whole = torch.cat([p[v] for p, v in zip(maps, valid, strict=True)]).mean()
    return float(entropy(whole)) + certainty(maps, valid)


def consistency(maps: Maps, perturbed: Maps) -> float:
    """Return the median over images of the overlap of two masks of the same image, in [0, 1].

    As Talks et al. rank models for semantic segmentation (arXiv 2503.00450): the share of both foregrounds' union on
    which a prediction and that under a perturbation, of the image or by dropout of whole feature channels, agree; a
    median over images. They leave out images without any foreground; here these count as 0, or a model that marks
    nothing would have no score.
    """
    overlaps = []
    for p, q in zip(maps, perturbed, strict=True):
        first, second = p > 0.5, q > 0.5
        overlaps.append(float((first & second).sum()) / max(1, int((first | second).sum())))
    return median(overlaps)


def prior_match(maps: Maps, prior: float, side: int) -> float:
    """Return how near the mean foreground is to the sources', in [0, 1]: the smaller of both by the larger.

    Args:
        prior: the sources' mean foreground in tiles, > 0.
        side: of a tile in pixels.

    The class-ratio prior of arXiv 2108.03152 as a score.
    """
    area = mean_area(maps, 0.5, side)
    return min(area, prior) / max(area, prior)
