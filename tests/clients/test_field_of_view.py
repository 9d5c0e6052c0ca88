"""The image on a screen is told from all that is written around it."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw
from screens import HEIGHT, WIDTH, Shape, as_jpeg, convex, linear, speckle, with_text

from clients.data.formats.recording import Field
from clients.data.intake.view import MOST_SIDE, Novelty, bright, field_of_view


@pytest.mark.parametrize("stored", [np.asarray, as_jpeg])
@pytest.mark.parametrize("shadow", [False, True])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [linear, convex])
def test_all_that_is_written_around_the_image_is_found_and_the_image_is_kept(
    shape: Shape, seed: int, shadow: bool, stored: Callable[[np.ndarray], np.ndarray]
) -> None:
    inside = shape()
    frame = with_text(speckle(inside, seed, shadow))

    view = field_of_view(bright(stored(frame)))

    assert view is not None
    outside = np.where(inside, 0, frame)
    assert np.count_nonzero(outside[view]) == 0
    assert view[inside].mean() > 0.97


@pytest.mark.parametrize("shape", [linear, convex])
def test_an_even_panel_larger_than_the_image_is_not_taken_for_it(shape: Shape) -> None:
    inside = shape()
    wide = np.full((HEIGHT, WIDTH + 500), 90, np.uint8)
    wide[:, :WIDTH] = with_text(speckle(inside, 1))
    ImageDraw.Draw(picture := Image.fromarray(wide)).text((600, 100), "MUELLER ANNA", fill=255)

    view = field_of_view(bright(np.asarray(picture)))

    assert view is not None
    assert not view[:, WIDTH:].any()
    assert view[:, :WIDTH][inside].mean() > 0.97


@pytest.mark.parametrize("shape", [linear, convex])
def test_a_frame_of_many_pixels_has_the_field_of_a_small_one(shape: Shape) -> None:
    times = 2 * MOST_SIDE // WIDTH
    inside, frame = (own.repeat(times, 0).repeat(times, 1) for own in (shape(), with_text(speckle(shape(), 0))))

    view = field_of_view(bright(frame))

    assert view is not None
    assert view.shape == frame.shape
    assert np.count_nonzero(np.where(inside, 0, frame)[view]) == 0
    assert view[inside].mean() > 0.97


def test_a_screen_without_an_image_has_no_field() -> None:
    assert field_of_view(bright(with_text(np.zeros((HEIGHT, WIDTH), np.uint8)))) is None
    assert field_of_view(np.zeros((HEIGHT, WIDTH), bool)) is None


def test_nothing_outside_the_region_that_the_header_tells_is_kept() -> None:
    view = field_of_view(bright(speckle(linear(), 0)), Field(60, 100, 200, 200))

    assert view is not None
    assert not view[:60].any()
    assert not view[:, 200:].any()
    assert view[60:200, 100:200].mean() > 0.97


def test_frames_that_show_the_same_are_told_from_new_ones() -> None:
    frames = [speckle(linear(), seed) for seed in (0, 0, 3)]
    noisy = np.clip(frames[0].astype(int) + np.random.default_rng(0).integers(-3, 4, frames[0].shape), 0, 255)
    novelty = Novelty()

    assert [novelty.is_new(own) for own in (*frames[:2], noisy.astype(np.uint8), frames[2])] == [
        True,
        False,
        False,
        True,
    ]
