"""The losses: padding does not count, no term couples two patients, and lower is better."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.losses import dense_contrast, dice_cross_entropy, reconstruction

COUNT, SIDE = 4, 16
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, truths in {0, 1} and a validity that ends in padding below, each [B, 1, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(COUNT, 1, SIDE, SIDE, generator=generator) * 2
    truth = (torch.rand(COUNT, 1, SIDE, SIDE, generator=generator) > 0.7).float()
    valid = torch.ones(COUNT, 1, SIDE, SIDE)
    for i in range(COUNT):
        valid[i, :, SIDE - 4 * i :] = 0
    return logits, truth, valid


def contrast(first: Tensor, second: Tensor, valid: Tensor) -> Tensor:
    """`dense_contrast` of vectors that are made of an image's 4 x 4 blocks."""

    def vectors(x: Tensor) -> Tensor:
        return F.normalize(F.pixel_unshuffle(x, 4), dim=1)

    usable = F.max_pool2d(1 - valid, 4)[:, 0] == 0
    return dense_contrast(vectors(first), vectors(second), usable, 0.2)


LOSSES = pytest.mark.parametrize("loss", [dice_cross_entropy, reconstruction, contrast], ids=lambda f: f.__name__)


@LOSSES
def test_what_stands_in_the_padding_changes_no_loss(loss: Loss) -> None:
    prediction, truth, valid = drawn(0)
    other, other_truth, _ = drawn(1)
    expected = loss(prediction, truth, valid)
    found = loss(torch.where(valid > 0, prediction, other), torch.where(valid > 0, truth, other_truth), valid)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@LOSSES
def test_more_padding_changes_no_loss(loss: Loss) -> None:
    maps = drawn(0)
    padded = (F.pad(x, (0, 8, 0, 16)) for x in maps)
    torch.testing.assert_close(loss(*padded), loss(*maps), rtol=1e-5, atol=1e-6)


@LOSSES
def test_the_loss_of_a_batch_is_that_of_its_images_one_by_one(loss: Loss) -> None:
    maps = drawn(0)
    alone = [loss(*(x[i : i + 1] for x in maps)) for i in range(COUNT)]
    together = loss(*maps)
    assert together.shape == (COUNT,)
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-5, atol=1e-6)


@LOSSES
def test_no_image_of_a_batch_moves_the_gradient_of_another(loss: Loss) -> None:
    prediction, truth, valid = drawn(0)
    prediction.requires_grad_(True)
    loss(prediction, truth, valid)[0].backward()
    assert prediction.grad is not None
    assert prediction.grad[0].abs().sum() > 0
    assert torch.equal(prediction.grad[1:], torch.zeros(COUNT - 1, 1, SIDE, SIDE))


@LOSSES
def test_an_image_of_nothing_but_padding_has_a_finite_loss_and_gradient(loss: Loss) -> None:
    prediction, truth, _ = drawn(0)
    prediction.requires_grad_(True)
    value = loss(prediction, truth, torch.zeros(COUNT, 1, SIDE, SIDE))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(prediction.grad).all()


def test_supervised_loss_falls_to_zero_for_a_perfect_and_confident_prediction() -> None:
    _, truth, valid = drawn(0)
    losses = [float(dice_cross_entropy((2 * truth - 1) * c, truth, valid).mean()) for c in (-5, 0, 1, 5, 20)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-4
    assert losses[0] > 4


def test_supervised_loss_of_an_empty_truth_falls_to_zero_too() -> None:
    _, _, valid = drawn(0)
    empty = torch.zeros_like(valid)
    assert float(dice_cross_entropy(empty - 20, empty, valid).max()) < 1e-4


def test_supervised_loss_of_an_undecided_prediction_is_the_one_worked_out_by_hand() -> None:
    truth, valid = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    truth[..., 0] = 1
    # log 2, and 1 - (2 * 2 * 0.5 + 1) / (4 * 0.5 + 2 + 1) with both smoothings at 1
    expected = 0.693147 + 1 - 3 / 5
    assert float(dice_cross_entropy(torch.zeros(1, 1, 2, 2), truth, valid)) == pytest.approx(expected, abs=1e-5)


def test_reconstruction_is_the_mean_square_over_hidden_pixels() -> None:
    image, hidden = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    predicted = torch.tensor([[[[3.0, 1.0], [100.0, 100.0]]]])
    assert float(reconstruction(predicted, image, hidden)) == 5


def test_contrast_is_lower_for_matching_than_for_shuffled_places() -> None:
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(COUNT, 16, 6, 6, generator=generator), dim=1)
    shuffled = features.flatten(2)[:, :, torch.randperm(36, generator=generator)].reshape(features.shape)
    usable = torch.ones(COUNT, 6, 6, dtype=torch.bool)
    matching = dense_contrast(features, features, usable, 0.2)
    assert (matching < 0.5 * dense_contrast(features, shuffled, usable, 0.2)).all()


def test_contrast_of_equal_places_is_the_logarithm_of_their_number() -> None:
    equal = F.normalize(torch.ones(1, 16, 6, 6), dim=1)
    usable = torch.zeros(1, 6, 6, dtype=torch.bool)
    usable[:, :2] = True
    assert float(dense_contrast(equal, equal, usable, 0.2)) == pytest.approx(2.4849, abs=1e-3)


def test_soft_labels_are_the_cross_entropys_alone() -> None:
    logits, mask, valid = drawn(0)
    soft = torch.rand(mask.shape, generator=torch.Generator().manual_seed(2))
    found = dice_cross_entropy(logits, mask, valid, soft=soft) - dice_cross_entropy(logits, mask, valid)
    # cross-entropy is linear in its labels: -(y - z) * logit
    expected = ((mask - soft) * logits * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_soft_labels_alone_would_favour_a_mask_that_is_too_large() -> None:
    """A disc of certain pixels in a rim of 0.4: with the mask's own Dice the rim stays below a half."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    radius = (rows - 7.5).hypot(columns - 7.5)
    soft = torch.where(radius < 3, 0.98, torch.where(radius < 6, 0.4, 0.02))[None, None]
    mask, rim, ones = (soft > 0.5).float(), (soft == 0.4), torch.ones_like(soft)

    def rim_after(truth: Tensor) -> float:
        logits = torch.zeros_like(soft, requires_grad=True)
        for _ in range(400):
            (slope,) = torch.autograd.grad(dice_cross_entropy(logits, truth, ones, soft=soft).sum(), logits)
            logits = (logits - 40 * slope).detach().requires_grad_()
        return float(torch.sigmoid(logits)[rim].mean())

    assert rim_after(mask) < 0.4
    assert rim_after(soft) > 0.4
