"""`evaluate`: every predictor on the labelled test patients; per-patient numbers stay here.

The only task that opens a target's masks.
"""

from collections import defaultdict

import numpy as np

from clients.dataset import by_patient as group
from clients.frames import read_mask
from clients.training import Metrics, TaskCancelled, TaskContext
from common.contract import MEASURES, PREDICTORS
from common.geometry import from_grid
from common.infusion import predict_maps
from common.metrics import FrameMeasures, bootstrap_interval, by_patient, measure_frame


def run(context: TaskContext) -> Metrics:
    """Return mean, 95 % interval and paired difference to `baseline`, over patients, of every predictor.

    Nothing is returned where fewer patients than the site's policy asks for stand behind a number.
    """
    frames = group(context.data.site.frames_of("test", labelled=True))
    if len(frames) < context.policy.min_patients:
        return {}
    with_baseline = "baseline" in context.study.initial
    predictors = [p for p in PREDICTORS if p != "baseline" or with_baseline]
    measured: dict[str, dict[str, list[FrameMeasures]]] = {p: defaultdict(list) for p in predictors}
    for patient in sorted(frames):
        if context.cancelled():
            raise TaskCancelled
        for frame in frames[patient]:
            sample = context.data.sample(frame)
            maps = predict_maps(context.networks, context.study, sample.image, sample.valid, baseline=with_baseline)
            truth = read_mask(frame)
            for predictor in predictors:
                own = from_grid(maps[predictor], sample.place).numpy()
                measured[predictor][patient].append(measure_frame(own, truth, frame.spacing_mm))
    metrics: Metrics = {}
    for predictor in predictors:
        every = [m for own in measured[predictor].values() for m in own]
        metrics[f"{predictor}/empty_truth"] = float(sum(m.empty_truth for m in every))
        metrics[f"{predictor}/empty_prediction"] = float(sum(m.empty_prediction for m in every))
        for measure in MEASURES:
            values = by_patient(measured[predictor], measure)
            metrics |= _described(f"{predictor}/{measure}", values, "")
            metrics[f"{predictor}/{measure}/patients"] = float(context.policy.declared_patients(len(values)))
            if with_baseline and predictor != "baseline":
                metrics |= _described(
                    f"{predictor}/{measure}",
                    values - by_patient(measured["baseline"], measure),
                    "difference",
                )
    return metrics


def _described(name: str, values: np.ndarray, what: str) -> Metrics:
    low, high = bootstrap_interval(values)
    keys = ("difference", "difference_low", "difference_high") if what else ("mean", "low", "high")
    return {f"{name}/{key}": float(v) for key, v in zip(keys, (values.mean(), low, high), strict=True)}
