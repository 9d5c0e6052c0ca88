"""`evaluate`: every predictor on the labelled test patients; per-patient numbers stay here.

The only task that opens a target's masks.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from clients.data.dataset import Dataset
from clients.data.frames import read_mask
from clients.learning.training import Measured, Numbers, TaskCancelled, TaskContext
from common.geometry import from_grid
from common.infusion import predict_maps
from common.metric_name import MEASURES, MetricName
from common.metrics import bootstrap_interval, mean_by_patient, measure_frame
from common.networks import Networks
from common.study import Study

Measure = TypeVar("Measure")


def measure_patients(
    networks: Networks,
    study: Study,
    data: Dataset,
    predictors: Sequence[str],
    measure: Callable[[np.ndarray, np.ndarray, float | None], Measure],
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, list[Measure]]]:
    """Return predictor -> patient who counts -> the measure of each labelled test frame. It never leaves as it is.

    Args:
        measure: of probability [H, W], truth [H, W] and spacing in mm or None, all on the image's own pixels.
    """
    counted = data.counted("test", labelled=True)
    measured: dict[str, dict[str, list[Measure]]] = {p: defaultdict(list) for p in predictors}
    for patient, frames in counted.items():
        if cancelled():
            raise TaskCancelled
        for frame in frames:
            sample = data.sample(frame)
            maps = predict_maps(networks, study, sample.image, sample.valid, predictors)
            truth = read_mask(frame)
            for predictor in predictors:
                probability = from_grid(maps[predictor], sample.place).numpy()
                measured[predictor][patient].append(measure(probability, truth, frame.spacing_mm))
    return measured


def run(context: TaskContext) -> Numbers:
    """Return mean, 95 % interval and paired difference to `baseline`, over patients, of every predictor.

    No mask is opened where fewer patients than the site's policy asks for stand behind the numbers.
    """
    count = len(context.data.counted("test", labelled=True))
    if count < context.policy.min_patients:
        return {}
    predictors = context.study.predictors
    measured = measure_patients(
        context.networks, context.study, context.data, predictors, measure_frame, context.cancelled
    )
    values: dict[MetricName, float] = {}
    for predictor in predictors:
        every = [m for frames in measured[predictor].values() for m in frames]
        # To a hundredth: an exact share of few frames would tell how many there are.
        values[MetricName(predictor, "empty_truth_share")] = round(float(np.mean([m.empty_truth for m in every])), 2)
        values[MetricName(predictor, "empty_prediction_share")] = round(
            float(np.mean([m.empty_prediction for m in every])), 2
        )
        for measure in MEASURES:
            by_patient = mean_by_patient(measured[predictor], measure)
            described = _described(by_patient, ("mean", "low", "high"))
            described["patients"] = float(context.policy.declared_patients(len(by_patient)))
            if context.study.compares and predictor != "baseline":
                difference = by_patient - mean_by_patient(measured["baseline"], measure)
                described |= _described(difference, ("difference", "difference_low", "difference_high"))
            values |= {MetricName(predictor, measure, name): value for name, value in described.items()}
    return {str(name): Measured(value, count) for name, value in values.items()}


def _described(values: np.ndarray, names: tuple[str, str, str]) -> dict[str, float]:
    """Return the mean over patients and its 95 % interval, under these names."""
    return dict(zip(names, (float(values.mean()), *bootstrap_interval(values)), strict=True))
