"""The losses. Each is normalised within an image, then averaged over images, so that no term couples
two patients, except by the mean. `valid` is False on padding, which nothing counts."""

import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional as F


def mean_within(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of [B, 1, H, W] within each image, [B]; 0 where no pixel counts."""
    return (values * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1e-6)


def dice_cross_entropy(logits: Tensor, truth: Tensor, weight: Tensor, soft: Tensor | None = None) -> Tensor:
    """Soft Dice plus cross-entropy, [B] (Milletari et al. 2016; nnU-Net's sum of both).

    Args:
        logits: [B, 1, H, W].
        truth: [B, 1, H, W] in [0, 1].
        weight: [B, 1, H, W] >= 0; 0 where a pixel does not count.
        soft: [B, 1, H, W] in [0, 1], what the cross-entropy takes in the place of `truth`: Dice with uncertain labels
            is least for a mask that is larger than theirs.
    """
    probability = truth if soft is None else soft
    cross_entropy = mean_within(F.binary_cross_entropy_with_logits(logits, probability, reduction="none"), weight)
    soft_dice = DiceLoss(reduction="none", smooth_nr=1.0, smooth_dr=1.0)
    dice = soft_dice(torch.sigmoid(logits) * weight, truth * weight).flatten(1).mean(1)
    return cross_entropy + dice


def reconstruction(predicted: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error on the hidden pixels of each image, [B] (MAE, arXiv 2111.06377, eq. in 3)."""
    return mean_within((predicted - image).square(), hidden)


def dense_contrast(first: Tensor, second: Tensor, usable: Tensor, temperature: float) -> Tensor:
    """InfoNCE within each image, [B]: the same place under two views is the positive, other places the negatives.

    Args:
        first, second: unit vectors [B, C, h, w] of two views, aligned place by place.
        usable: [B, h, w] bool; places in padding are neither positive nor negative.
        temperature: > 0.

    The dense form of arXiv 2011.09157 without its queue, so that no term couples two patients.
    """
    a, b = first.flatten(2).transpose(1, 2), second.flatten(2).transpose(1, 2)  # [B, N, C]
    similarity = a @ b.transpose(1, 2) / temperature  # [B, N, N]
    keep = usable.flatten(1)
    similarity = similarity.masked_fill(~keep[:, None, :], -1e4)
    target = torch.arange(similarity.shape[1]).expand(len(similarity), -1)
    loss = F.cross_entropy(similarity.transpose(1, 2), target, reduction="none")  # [B, N]
    return (loss * keep).sum(1) / keep.sum(1).clamp(min=1)
