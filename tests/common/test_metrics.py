"""The measures, worked out by hand, and intervals over patients."""

import math

import numpy as np
import pytest

from common.metrics import FrameMeasures, bootstrap_interval, calibration_error, mean_by_patient, measure_frame


def mask(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = (30, 40)) -> np.ndarray:
    """True within (top, bottom, left, right), ends excluded."""
    found = np.zeros(shape, bool)
    for top, bottom, left, right in boxes:
        found[top:bottom, left:right] = True
    return found


def measured(predicted: np.ndarray, truth: np.ndarray, spacing_mm: float | None = None) -> FrameMeasures:
    return measure_frame(predicted.astype(np.float32), truth, spacing_mm)


def test_overlap_of_two_boxes() -> None:
    found = measured(mask((0, 10, 0, 10)), mask((0, 10, 5, 15)))
    assert found.dice == pytest.approx(2 * 50 / 200)
    assert found.iou == pytest.approx(50 / 150)


def test_a_perfect_prediction() -> None:
    found = measured(mask((3, 9, 4, 20)), mask((3, 9, 4, 20)), 0.2)
    assert (found.dice, found.iou, found.hd95, found.calibration_error) == (1, 1, 0, 0)


@pytest.mark.parametrize(("spacing_mm", "distance"), [(None, 5.0), (0.2, 1.0)])
def test_distance_of_two_points_is_in_mm_or_in_pixels(spacing_mm: float | None, distance: float) -> None:
    found = measured(mask((10, 11, 10, 11)), mask((13, 14, 14, 15)), spacing_mm)
    assert found.hd95 == pytest.approx(distance)
    assert (found.dice, found.iou) == (0, 0)


def test_distance_of_two_lines() -> None:
    assert measured(mask((5, 6, 0, 40)), mask((8, 9, 0, 40)), 0.5).hd95 == pytest.approx(1.5)


def test_one_stray_pixel_of_many_does_not_make_the_distance() -> None:
    line = mask((5, 6, 0, 40))
    assert measured(line | mask((25, 26, 20, 21)), line).hd95 == 0
    assert measured(line | mask((25, 26, 20, 30)), line).hd95 == pytest.approx(20)


def test_only_more_than_one_half_is_foreground() -> None:
    truth = mask((0, 1, 0, 2))
    probability = np.where(truth, 0.51, 0.5)
    assert measure_frame(probability, truth, None).dice == 1


@pytest.mark.parametrize(
    ("predicted", "truth", "overlap", "distance"),
    [
        (mask(), mask(), 1.0, 0.0),
        (mask(), mask((0, 2, 0, 2)), 0.0, 50 * 0.1),
        (mask((0, 2, 0, 2)), mask(), 0.0, 50 * 0.1),
    ],
)
def test_empty_masks_follow_the_stated_rule(
    predicted: np.ndarray, truth: np.ndarray, overlap: float, distance: float
) -> None:
    found = measured(predicted, truth, 0.1)
    assert (found.dice, found.iou) == (overlap, overlap)
    assert found.hd95 == pytest.approx(distance)
    assert (found.empty_prediction, found.empty_truth) == (not predicted.any(), not truth.any())
    assert measured(predicted, truth).hd95 == pytest.approx(distance * 10)


def test_a_calibrated_prediction_has_no_calibration_error() -> None:
    probability = np.repeat([0.25, 0.75, 0.05], [40, 40, 20]).reshape(10, 10)
    truth = np.repeat([True, False, True, False, True, False], [10, 30, 30, 10, 1, 19]).reshape(10, 10)
    assert calibration_error(probability, truth) == pytest.approx(0, abs=1e-9)


def test_calibration_error_of_a_known_case() -> None:
    # 60 pixels at 0.9 of which 30 are true, 40 at 0.3 of which none: 0.6 * 0.4 + 0.4 * 0.3
    probability = np.repeat([0.9, 0.3], [60, 40]).reshape(10, 10)
    truth = np.repeat([True, False, False], [30, 30, 40]).reshape(10, 10)
    assert calibration_error(probability, truth) == pytest.approx(0.36)


@pytest.mark.parametrize(("probability", "error"), [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5)])
def test_calibration_error_at_the_ends_of_the_scale(probability: float, error: float) -> None:
    assert calibration_error(np.full((4, 4), probability), np.ones((4, 4), bool)) == pytest.approx(error)


def test_an_interval_covers_the_mean_and_is_the_same_every_time() -> None:
    values = np.random.default_rng(1).uniform(0, 1, 30)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert (low, high) == bootstrap_interval(values.copy())


def test_an_interval_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(0, 1, 400)
    low, high = bootstrap_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.1)


def test_an_interval_is_the_one_that_resampling_by_hand_gives() -> None:
    """Published intervals were computed so; they move by rounding alone."""
    values, generator = np.random.default_rng(1).uniform(0, 1, 36), np.random.default_rng(0)
    means = values[generator.integers(0, 36, (2000, 36))].mean(1)
    assert bootstrap_interval(values) == pytest.approx(np.quantile(means, [0.025, 0.975]), rel=1e-12)


def test_several_samples_are_resampled_each_by_itself() -> None:
    few, many, generator = np.array([0.0, 1.0]), np.linspace(2, 3, 50), np.random.default_rng(0)
    means = [x[generator.integers(0, len(x), (2000, len(x)))].mean(1) for x in (few, many)]
    assert bootstrap_interval(few, many) == pytest.approx(np.quantile(np.mean(means, 0), [0.025, 0.975]), rel=1e-12)


def test_an_interval_of_one_patient_is_that_patient() -> None:
    assert bootstrap_interval(np.array([0.7])) == (0.7, 0.7)


def test_frames_are_averaged_within_a_patient_first() -> None:
    def frame(dice: float) -> FrameMeasures:
        return FrameMeasures(dice, 0, 0, 0, False, False)

    frames = {"b": [frame(1.0)], "a": [frame(0.0), frame(0.5), frame(0.1)]}
    values = mean_by_patient(frames, "dice")
    assert values.tolist() == [pytest.approx(0.2), 1.0]
    assert values.mean() == pytest.approx(0.6)
