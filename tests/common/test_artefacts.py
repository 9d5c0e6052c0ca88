"""The bank of artefacts: each does what its source says, where it says, and nothing to what lies outside."""

from typing import get_args

import pytest
import torch
from torch import Generator, Tensor

from common.artefact_settings import Artefact
from common.artefacts import (
    PHOTOMETRIC,
    calipers,
    compression,
    depth_blur,
    depth_setting,
    field_of_view,
    near_field_clutter,
    photometric,
    reverberation,
    shadow,
    speckle,
    time_gain,
)
from common.augment import augment, warp
from common.study_settings import Augmentation

EVERY = dict.fromkeys(get_args(Artefact), 1.0)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def tissue(count: int = 8, side: int = 64) -> Tensor:
    """Grey in the middle of the scale, [B, 1, H, W], with a black margin as of a letterboxed image."""
    images = 0.3 + 0.3 * torch.rand(count, 1, side, side, generator=seeded(99))
    images[..., -8:] = 0
    return images


def test_every_artefact_that_a_study_can_name_is_one_of_the_bank() -> None:
    assert set(get_args(Artefact)) == {*PHOTOMETRIC, "depth_setting", "field_of_view"}


@pytest.mark.parametrize("kind", PHOTOMETRIC)
def test_an_artefact_follows_its_generator_and_its_strength(kind: Artefact) -> None:
    apply = PHOTOMETRIC[kind]
    torch.testing.assert_close(apply(tissue(), seeded(), 0.0), tissue(), atol=1e-6, rtol=0)
    assert torch.equal(apply(tissue(), seeded(1), 0.7), apply(tissue(), seeded(1), 0.7))
    bright = tissue() * 1.6  # reverberation is unseen in dim images
    changes = [float((apply(bright, seeded(1), s) - bright).abs().mean()) for s in (0.3, 1.0)]
    assert changes[1] > 0, kind
    assert changes[0] < changes[1]


@pytest.mark.parametrize("image", [tissue(), torch.zeros(8, 1, 64, 64), torch.ones(8, 1, 64, 64)])
def test_views_stay_between_0_and_1_and_black_stays_black(image: Tensor) -> None:
    still = Augmentation(flip=False, scale=0, rotation_deg=0, shift=0, gamma=0)
    grey = dict.fromkeys(PHOTOMETRIC, 1.0)
    for seed in range(5):
        view, valid = augment(image, torch.ones_like(image), still, seeded(seed), artefacts=EVERY)
        assert torch.isfinite(view).all()
        assert float(view.min()) >= 0
        assert float(view.max()) <= 1
        assert set(valid.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(photometric(image, grey, seeded(seed)) > 0, image > 0)


def test_without_artefacts_a_view_is_what_it_was_before_there_were_any() -> None:
    settings = Augmentation(device_shift=0.5)
    plain = augment(tissue(), tissue(), settings, seeded(3))
    assert all(torch.equal(a, b) for a, b in zip(plain, augment(tissue(), tissue(), settings, seeded(3)), strict=True))
    none = augment(tissue(), tissue(), settings, seeded(3), artefacts={})
    assert all(torch.equal(a, b) for a, b in zip(plain, none, strict=True))
    some = augment(tissue(), tissue(), settings, seeded(3), artefacts={"shadow": 1.0})
    assert not torch.equal(plain[0], some[0])


def test_reverberation_repeats_a_bright_line_at_twice_its_depth_and_nowhere_above() -> None:
    line = torch.full((4, 1, 64, 64), 0.05)
    line[..., 15:17, :] = 1.0  # centred at depth 16 of 64
    again = reverberation(line, seeded(), 1.0) - line
    assert torch.equal(again[..., :28, :], torch.zeros(4, 1, 28, 64))
    deepest = again.mean((0, 1, 3))
    assert int(deepest.argmax()) in (31, 32)  # centred at depth 32
    assert float(deepest.max()) > 0.1


def test_clutter_brightens_the_near_field_only() -> None:
    added = near_field_clutter(tissue(), seeded(), 1.0) - tissue()
    assert float(added.min()) >= 0
    rows = added.mean((0, 1, 3))
    assert float(rows[:6].mean()) > 20 * float(rows[48:].mean())


def test_time_gain_is_the_same_across_and_within_a_quarter_of_the_scale() -> None:
    gain = time_gain(tissue(), seeded(), 1.0) - tissue()
    torch.testing.assert_close(gain, gain[..., :1].expand_as(gain), atol=1e-6, rtol=0)
    assert 0.1 < float(gain.abs().max()) <= 0.25 + 1e-6
    assert float(gain[:, 0, :, 0].std(1).min()) > 0, "it varies down the image"


def test_compression_keeps_the_order_of_greys() -> None:
    ramp = torch.linspace(0, 1, 64).reshape(1, 1, 1, 64).expand(32, 1, 4, 64)
    mapped = compression(ramp, seeded(), 1.0)
    assert (mapped.diff(dim=-1) >= 0).all()
    assert len({round(float(x), 3) for x in mapped[:, 0, 0, 32]}) > 20, "each image has a map of its own"


def test_speckle_has_no_mean_and_no_more_than_its_deviation() -> None:
    grain = speckle(tissue(64), seeded(), 1.0) - tissue(64)
    assert abs(float(grain.mean())) < 0.005
    assert float(grain.std((1, 2, 3)).max()) < 0.12


def test_a_shadow_only_darkens_and_leaves_most_of_the_image() -> None:
    darkened = shadow(tissue(64), seeded(), 1.0) - tissue(64)
    assert float(darkened.max()) <= 0
    hidden = (darkened < -0.05).float().mean((1, 2, 3))
    assert float(hidden.max()) < 0.45
    assert float(hidden.median()) > 0.02
    upper, lower = (darkened[..., rows, :].abs().mean() for rows in (slice(0, 16), slice(40, 56)))
    assert float(lower) > 1.3 * float(upper), "below a reflector, not above it"


def test_blur_keeps_the_focus_sharp_and_adds_no_brightness() -> None:
    blurred = depth_blur(tissue(64), seeded(), 1.0)
    assert float((blurred - tissue(64)).mean().abs()) < 0.005
    sharpness = [x[..., :-8].diff(dim=-1).abs().mean((1, 3)) for x in (blurred, tissue(64))]
    kept = sharpness[0] / sharpness[1]  # [B, H]
    assert float(kept.amax(1).min()) > 0.9
    assert float(kept.min()) < 0.6


def test_calipers_are_a_few_bright_pixels() -> None:
    marks = calipers(torch.full((64, 1, 64, 64), 0.2), seeded(), 1.0) > 0.2
    count = marks.sum((1, 2, 3))
    assert int(count.min()) >= 1
    assert int(count.max()) <= 4 * 13


def test_another_field_of_view_cuts_image_label_and_validity_alike() -> None:
    image, maps = tissue(64), torch.ones(64, 2, 64, 64)
    cut, cut_maps = field_of_view(image, maps, seeded(), 1.0)
    assert torch.equal(cut, image * cut_maps[:, :1])
    assert torch.equal(cut_maps[:, 0], cut_maps[:, 1])
    seen = cut_maps[:, 0].mean((1, 2))
    assert float(seen.min()) > 0.25
    assert float(seen.min()) < 0.7 < float(seen.max())
    assert torch.equal(field_of_view(image, maps, seeded(), 0.0)[0], image)


def test_another_depth_setting_keeps_the_skin_at_the_top() -> None:
    skin = torch.zeros(32, 1, 64, 64)
    skin[..., :2, 20:44] = 1
    matrices = depth_setting(32, seeded(), 1.0)
    moved = warp(skin, matrices)
    assert (moved[..., 0, 28:36] > 0).all()
    assert float(moved[..., 6:, :].max()) == 0
    zoom = matrices[:, 1, 1]
    assert float(zoom.min()) < 0.8 < 1.25 < float(zoom.max())


def test_half_of_the_images_show_any_one_artefact() -> None:
    changed = (photometric(tissue(400, 32), {"time_gain": 1.0}, seeded()) != tissue(400, 32)).any(3).any(2).any(1)
    assert float(changed.float().mean()) == pytest.approx(0.5, abs=0.08)
