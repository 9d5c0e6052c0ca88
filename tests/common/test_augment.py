"""Random views: repeatable, within range, masks with their images, and never upside down."""

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from common.augment import augment, device_shift, random_affine, warp
from common.study_settings import Augmentation

STILL = Augmentation(flip=False, scale=0, rotation_deg=0, shift=0, gamma=0)
WILD = Augmentation(scale=0.3, rotation_deg=45, shift=0.2, gamma=1.5, device_shift=1)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 6, side: int = 32) -> Tensor:
    return torch.rand(count, 1, side, side, generator=seeded(99))


def blobs() -> Tensor:
    """Bright discs off the centre, [8, 1, 64, 64] in [0, 1]."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    centres = torch.linspace(24, 40, 8)
    discs = [((rows - 20 - i) ** 2 + (columns - c) ** 2 < 49).float() for i, c in enumerate(centres)]
    return torch.stack(discs)[:, None]


def centroids(x: Tensor) -> Tensor:
    """[B, 2] row and column of the centre of mass of [B, 1, H, W]."""
    rows, columns = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
    return torch.stack([(x[:, 0] * axis).sum((1, 2)) / x[:, 0].sum((1, 2)) for axis in (rows, columns)], 1)


@pytest.mark.parametrize(
    "view",
    [
        lambda x, g: augment(x, x, WILD, g)[0],
        lambda x, g: augment(x, x, WILD, g)[1],
        lambda x, g: device_shift(x, g, 0.7),
        lambda x, g: random_affine(len(x), WILD, g),
    ],
)
def test_the_same_generator_state_gives_the_same_view(view: Callable[[Tensor, Generator], Tensor]) -> None:
    assert torch.equal(view(noise(), seeded(5)), view(noise(), seeded(5)))
    assert not torch.equal(view(noise(), seeded(5)), view(noise(), seeded(6)))


def test_a_view_depends_on_no_other_randomness() -> None:
    torch.manual_seed(1)
    first = augment(noise(), noise(), WILD, seeded())
    torch.manual_seed(2)
    again = augment(noise(), noise(), WILD, seeded())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_device_shift_of_strength_zero_is_the_identity() -> None:
    assert torch.equal(device_shift(noise(), seeded(), 0), noise())


def test_a_stronger_device_shift_changes_more() -> None:
    changes = [float((device_shift(noise(), seeded(), s) - noise()).abs().mean()) for s in (0.1, 0.5, 1.0)]
    assert changes == sorted(changes)
    assert changes[0] > 0


def test_a_device_shift_leaves_the_anatomy_where_it_is() -> None:
    for seed in range(5):
        moved = (device_shift(blobs() * 0.8 + 0.1, seeded(seed), 0.5) - 0.5).clamp(min=0) + 1e-6
        inside = (moved * blobs()).sum((1, 2, 3)) / moved.sum((1, 2, 3))
        assert float(inside.median()) > 0.6


def test_augmenting_without_any_strength_is_the_identity() -> None:
    image, maps = augment(noise(), blobs()[:6, :, :32, :32], STILL, seeded())
    torch.testing.assert_close(image, noise(), atol=1e-5, rtol=0)
    assert torch.equal(maps, blobs()[:6, :, :32, :32])


@pytest.mark.parametrize("image", [noise(), torch.zeros(6, 1, 32, 32), torch.ones(6, 1, 32, 32)])
@pytest.mark.parametrize("settings", [WILD, WILD.model_copy(update={"device_shift": 0.0})])
def test_views_stay_between_0_and_1(image: Tensor, settings: Augmentation) -> None:
    for seed in range(5):
        view, maps = augment(image, (image > 0.5).float(), settings, seeded(seed))
        assert torch.isfinite(view).all()
        assert float(view.min()) >= 0
        assert float(view.max()) <= 1
        assert set(maps.unique().tolist()) <= {0.0, 1.0}


def test_masks_move_with_their_images() -> None:
    settings = Augmentation(scale=0.2, rotation_deg=20, shift=0.1, gamma=0)
    image, mask = augment(blobs(), blobs(), settings, seeded(3))
    assert float((centroids(image) - centroids(mask)).abs().max()) < 0.5
    assert float((centroids(blobs()) - centroids(mask)).abs().max()) > 2


def test_each_image_of_a_batch_gets_a_view_of_its_own() -> None:
    same = blobs()[:1].expand(6, -1, -1, -1)
    view, _ = augment(same, same, WILD, seeded())
    assert len({x.numpy().tobytes() for x in view}) == 6


def test_flips_are_left_and_right_and_about_half_of_the_views() -> None:
    matrices = random_affine(400, Augmentation(rotation_deg=45, scale=0.5), seeded())
    assert (matrices[:, 1, 1] > 0).all(), "depth has a direction"
    mirrored = float((torch.linalg.det(matrices[:, :, :2]) < 0).float().mean())
    assert mirrored == pytest.approx(0.5, abs=0.1)


def test_no_view_is_upside_down() -> None:
    skin_above = torch.zeros(64, 1, 32, 32)
    skin_above[:, :, :16] = 1
    view, _ = augment(skin_above, skin_above, Augmentation(rotation_deg=30), seeded())
    assert (view[:, :, :16].sum((1, 2, 3)) > view[:, :, 16:].sum((1, 2, 3))).all()


def test_without_flip_nothing_is_mirrored() -> None:
    matrices = random_affine(400, Augmentation(flip=False, rotation_deg=45), seeded())
    assert (torch.linalg.det(matrices[:, :, :2]) > 0).all()


def test_what_comes_from_outside_the_image_is_zero() -> None:
    aside = torch.tensor([[[1.0, 0, 1.0], [0, 1.0, 0]]])
    moved = warp(torch.ones(1, 1, 32, 32), aside)
    assert torch.equal(moved[..., 17:], torch.zeros(1, 1, 32, 15))
    torch.testing.assert_close(moved[..., :15], torch.ones(1, 1, 32, 15))
