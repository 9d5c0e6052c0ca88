"""`evaluate`: every predictor on the labelled test patients; per-patient numbers stay here.

The only task that opens a target's masks.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from clients.data.dataset import Dataset, by_patient
from clients.data.frames import read_mask
from clients.learning.training import Metrics, TaskCancelled, TaskContext
from common.contract import MEASURES, PREDICTORS
from common.geometry import from_grid
from common.infusion import predict_maps
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
    """Return predictor -> patient -> the measure of each labelled test frame. Never leaves the process as it is.

    Args:
        measure: of probability [H, W], truth [H, W] and spacing in mm or None, all on the image's own pixels.
    """
    frames = by_patient(data.site.frames_of("test", labelled=True))
    measured: dict[str, dict[str, list[Measure]]] = {p: defaultdict(list) for p in predictors}
    for patient in sorted(frames):
        if cancelled():
            raise TaskCancelled
        for frame in frames[patient]:
            sample = data.sample(frame)
            maps = predict_maps(networks, study, sample.image, sample.valid, baseline="baseline" in predictors)
            truth = read_mask(frame)
            for predictor in predictors:
                own = from_grid(maps[predictor], sample.place).numpy()
                measured[predictor][patient].append(measure(own, truth, frame.spacing_mm))
    return measured


def run(context: TaskContext) -> Metrics:
    """Return mean, 95 % interval and paired difference to `baseline`, over patients, of every predictor.

    Nothing is returned where fewer patients than the site's policy asks for stand behind a number.
    """
    if len(context.data.site.patients("test", labelled=True)) < context.policy.min_patients:
        return {}
    with_baseline = "baseline" in context.study.initial
    predictors = [p for p in PREDICTORS if p != "baseline" or with_baseline]
    measured = measure_patients(
        context.networks, context.study, context.data, predictors, measure_frame, context.cancelled
    )
    metrics: Metrics = {}
    for predictor in predictors:
        every = [m for own in measured[predictor].values() for m in own]
        # To a hundredth: an exact share of few frames would tell how many there are.
        metrics[f"{predictor}/empty_truth_share"] = round(float(np.mean([m.empty_truth for m in every])), 2)
        metrics[f"{predictor}/empty_prediction_share"] = round(float(np.mean([m.empty_prediction for m in every])), 2)
        for measure in MEASURES:
            values = mean_by_patient(measured[predictor], measure)
            metrics |= _described(f"{predictor}/{measure}", values, "")
            metrics[f"{predictor}/{measure}/patients"] = float(context.policy.declared_patients(len(values)))
            if with_baseline and predictor != "baseline":
                metrics |= _described(
                    f"{predictor}/{measure}",
                    values - mean_by_patient(measured["baseline"], measure),
                    "difference",
                )
    return metrics


def _described(name: str, values: np.ndarray, what: str) -> Metrics:
    low, high = bootstrap_interval(values)
    keys = ("difference", "difference_low", "difference_high") if what else ("mean", "low", "high")
    return {f"{name}/{key}": float(v) for key, v in zip(keys, (values.mean(), low, high), strict=True)}
