"""Segmentation measures by patient, on each image's own pixels, and intervals over patients.

Rule for empty masks, stated once: truth and prediction both empty is Dice = IoU = 1 and HD95 = 0;
exactly one of them empty is Dice = IoU = 0 and HD95 = the image's diagonal. Both cases are counted.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou
from scipy.stats import bootstrap

# MONAI calls its own deprecated argument within HD95; nobody who reads our output can mend that.
warnings.filterwarnings("ignore", message="monai.metrics.utils get_mask_edges", category=FutureWarning)

#: Bins of the calibration error; 10 is the customary number (Guo et al. 2017, arXiv 1706.04599).
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class FrameMeasures:
    """One frame's measures: Dice and IoU in [0, 1], HD95 in mm (pixels without spacing), calibration in [0, 1]."""

    dice: float
    iou: float
    hd95: float
    calibration_error: float
    empty_truth: bool
    empty_prediction: bool


def calibration_error(probability: np.ndarray, truth: np.ndarray) -> float:
    """Return the expected calibration error over the pixels of [H, W] maps: ECE with equal-width bins."""
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1).ravel()
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    confidence = np.bincount(bins, weights=probability.ravel(), minlength=CALIBRATION_BINS)
    accuracy = np.bincount(bins, weights=truth.ravel().astype(float), minlength=CALIBRATION_BINS)
    return float(np.abs(confidence - accuracy).sum() / count.sum())


def frame_dice(probability: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice of one prediction alone, as `measure_frame` has it: HD95 costs a hundred times more."""
    predicted = probability > 0.5
    if not truth.any() or not predicted.any():
        return float(not truth.any() and not predicted.any())
    return float(compute_dice(*_volumes(predicted, truth)))


def _volumes(*masks: np.ndarray) -> list[torch.Tensor]:
    """Return [H, W] masks as MONAI takes them, [1, 1, H, W]."""
    return [torch.from_numpy(np.ascontiguousarray(mask))[None, None].float() for mask in masks]


def measure_frame(probability: np.ndarray, truth: np.ndarray, spacing_mm: float | None) -> FrameMeasures:
    """Measure one prediction.

    Args:
        probability: [H, W] in [0, 1], on the image's own pixels; foreground is > 0.5.
        truth: [H, W] bool.
        spacing_mm: side of a pixel; None gives HD95 in pixels.
    """
    predicted = probability > 0.5
    empty_truth, empty_prediction = not truth.any(), not predicted.any()
    error = calibration_error(probability, truth)
    scale = spacing_mm or 1.0
    if empty_truth or empty_prediction:
        agree = float(empty_truth and empty_prediction)
        distance = 0.0 if agree else float(np.hypot(*truth.shape)) * scale
        return FrameMeasures(agree, agree, distance, error, empty_truth, empty_prediction)
    p, t = _volumes(predicted, truth)
    return FrameMeasures(
        dice=float(compute_dice(p, t)),
        iou=float(compute_iou(p, t)),
        hd95=float(compute_hausdorff_distance(p, t, percentile=95, spacing=scale)),
        calibration_error=error,
        empty_truth=False,
        empty_prediction=False,
    )


def mean_by_patient(frames: Mapping[str, Sequence[FrameMeasures]], measure: str) -> np.ndarray:
    """Return one value a patient, in the order of sorted patients: the mean over the patient's frames."""
    return np.array([np.mean([getattr(frame, measure) for frame in frames[p]]) for p in sorted(frames)])


def bootstrap_interval(*samples: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean, resampling patients (Efron 1979).

    Args:
        samples: one value a patient. Of several samples it is the mean of their means, and each is resampled by itself.

    A single patient has no interval: low and high are his value.
    """
    if all(len(values) == 1 for values in samples):
        value = float(np.mean(samples))
        return value, value

    def mean_of_means(*drawn: np.ndarray, axis: int) -> np.ndarray:
        return np.mean([values.mean(axis) for values in drawn], axis=0)

    generator = np.random.default_rng(seed)
    resampled = bootstrap(
        samples, mean_of_means, n_resamples=draws, method="percentile", vectorized=True, rng=generator
    )
    return float(resampled.confidence_interval.low), float(resampled.confidence_interval.high)
