"""Between an image's own pixels and the study's grid, and back."""

import numpy as np
import pytest
import torch

from common.errors import StudyError
from common.geometry import Placement, from_grid, placement, standardise, to_grid
from common.study_settings import ImageGrid

LETTERBOX = ImageGrid(size=64, geometry="letterbox", spacing_mm=None)
SPACING = ImageGrid(size=64, spacing_mm=0.5)


def smooth(height: int, width: int) -> np.ndarray:
    """A map in [0.1, 0.9] that changes slowly over the image, [H, W]."""
    rows, columns = np.mgrid[:height, :width]
    return (0.5 + 0.4 * np.sin(3 * rows / height) * np.cos(4 * columns / width)).astype(np.float32)


@pytest.mark.parametrize(
    ("grid", "spacing_mm", "content", "padded"),
    [
        (LETTERBOX, None, (48, 64), (64, 64)),
        (LETTERBOX, 0.25, (48, 64), (64, 64)),
        (SPACING, 0.25, (60, 80), (64, 80)),
        (SPACING, 0.1, (24, 32), (64, 64)),
        (SPACING, 0.5, (120, 160), (128, 160)),
    ],
)
def test_a_smooth_map_comes_back_to_its_own_pixels(
    grid: ImageGrid, spacing_mm: float | None, content: tuple[int, int], padded: tuple[int, int]
) -> None:
    image = smooth(120, 160)
    place = placement(120, 160, spacing_mm, grid)
    assert place == Placement((120, 160), content)
    values, valid = to_grid(image, place, grid, stride=16)
    assert values.shape == valid.shape == padded
    back = from_grid(values, place).numpy()
    assert back.shape == image.shape
    assert np.abs(back - image).max() < 0.03


@pytest.mark.parametrize(("height", "width"), [(16, 1000), (1000, 16), (64, 64), (17, 33)])
def test_images_of_any_shape_fit_and_come_back(height: int, width: int) -> None:
    place = placement(height, width, None, LETTERBOX)
    values, valid = to_grid(smooth(height, width), place, LETTERBOX, stride=16)
    assert values.shape == (64, 64)
    assert valid.any()
    assert from_grid(values, place).shape == (height, width)


def test_the_same_anatomy_has_the_same_size_whatever_the_probe() -> None:
    coarse = to_grid(smooth(60, 80), placement(60, 80, 0.4, SPACING), SPACING, stride=16)[0]
    fine = to_grid(smooth(240, 320), placement(240, 320, 0.1, SPACING), SPACING, stride=16)[0]
    assert torch.allclose(coarse, fine, atol=0.03)


def test_padding_is_invalid_and_exactly_zero() -> None:
    place = placement(120, 160, None, LETTERBOX)
    values, valid = to_grid(np.ones((120, 160), np.float32), place, LETTERBOX, stride=16)
    assert valid[:48].all()
    assert not valid[48:].any()
    torch.testing.assert_close(values[:48], torch.ones(48, 64))
    assert torch.equal(values[48:], torch.zeros(16, 64))


def test_what_stands_in_the_padding_is_not_brought_back() -> None:
    place = placement(120, 160, None, LETTERBOX)
    values, valid = to_grid(smooth(120, 160), place, LETTERBOX, stride=16)
    assert torch.equal(from_grid(torch.where(valid, values, 7.0), place), from_grid(values, place))


def test_downscaling_averages_instead_of_picking_pixels() -> None:
    speckle = np.random.default_rng(0).uniform(0, 1, (640, 640)).astype(np.float32)
    values, _ = to_grid(speckle, placement(640, 640, None, LETTERBOX), LETTERBOX, stride=16)
    assert float(values.std()) < 0.06


def test_an_image_is_standardised_within_its_view_and_zero_outside() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 1, 32, 32, generator=generator) * torch.tensor([1.0, 0.5, 0.9])[:, None, None, None]
    valid = torch.ones(3, 1, 32, 32, dtype=torch.bool)
    valid[:, :, 20:] = False
    image[2, :, :, :5] = 0  # a black corner is no tissue
    x = standardise(image, valid)
    assert torch.equal(x[~valid], torch.zeros(int((~valid).sum())))
    for own, view in zip(x, valid & (image > 0), strict=True):
        assert float(own[view].mean()) == pytest.approx(0, abs=1e-4)
        assert float(own[view].std()) == pytest.approx(1, abs=0.02)


def test_standardising_forgets_gain_and_offset() -> None:
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    torch.testing.assert_close(
        standardise(image * 0.5 + 0.3, valid), standardise(image * 0.9 + 0.05, valid), atol=0.01, rtol=0.01
    )


@pytest.mark.parametrize("grey", [0.0, 0.5])
def test_an_image_without_contrast_stays_finite(grey: float) -> None:
    flat = torch.full((1, 1, 32, 32), grey)
    for valid in (torch.ones_like(flat, dtype=torch.bool), torch.zeros_like(flat, dtype=torch.bool)):
        assert float(standardise(flat, valid).abs().max()) < 1e-3


def test_a_missing_spacing_is_named_with_its_remedies() -> None:
    with pytest.raises(StudyError, match=r"spacing_mm.*manifest\.csv.*letterbox"):
        placement(120, 160, None, SPACING)
