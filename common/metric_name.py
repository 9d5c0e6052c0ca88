"""The names of an evaluation's numbers, `predictor/measure/statistic`: built, parsed and explained here only."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

PREDICTORS = {
    "baseline": "the model trained on labels alone",
    "source_branch": "the branch that learns from labels",
    "target_branch": "the branch for the unlabelled probe",
    "average": "the plain average of both branches",
    "infusion": "both branches, weighed by the infusion head",
    "student": "the small, fast network that learned what the others predict together",
}
MEASURES = {
    "dice": "Dice (0 to 1)",
    "iou": "intersection over union (0 to 1)",
    "hd95": "95th percentile of the distance between outlines (mm, or pixels without spacing)",
    "calibration_error": "calibration error (0 to 1)",
}
STATISTICS = {
    "mean": "mean over test patients",
    "low": "lower end of the mean's 95 % interval",
    "high": "upper end of the mean's 95 % interval",
    "difference": "mean difference to the baseline",
    "difference_low": "lower end of that difference's 95 % interval",
    "difference_high": "upper end of that difference's 95 % interval",
    "patients": "number of test patients behind it, rounded and capped by your policy",
}
#: Shares of test frames, without a statistic. No count: the policy rounds counts of patients only.
SHARES = {
    "empty_truth_share": "share of test images, to a hundredth, on which nothing is marked in your labels",
    "empty_prediction_share": "share of test images, to a hundredth, on which the model marks nothing",
}


@dataclass(frozen=True)
class MetricName:
    """One number of an evaluation; `str()` is how it is sent.

    Attributes:
        measure: of `MEASURES`, with a statistic, or of `SHARES`, without.
    """

    predictor: str
    measure: str
    statistic: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.predictor, self.measure, self.statistic)))

    @classmethod
    def parse(cls, text: str) -> "MetricName | None":
        """Return the name that `text` is, or None where no evaluation sends such a number."""
        name = cls(*text.split("/")[:3]) if text.count("/") in (1, 2) else None
        return name if name in ALL else None

    @property
    def about(self) -> tuple[str, ...]:
        """The predictors that the number is about: one, or one and the baseline that it is compared with."""
        return (self.predictor, "baseline") if self.statistic.startswith("difference") else (self.predictor,)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest value that the number can have."""
        if self.statistic.startswith("difference"):
            return (-math.inf, math.inf) if self.measure == "hd95" else (-1.0, 1.0)
        return (0.0, math.inf if self.measure == "hd95" or self.statistic == "patients" else 1.0)

    @property
    def meaning(self) -> str:
        """What the number says, in plain words."""
        if not self.statistic:
            return f"{SHARES[self.measure]} ({PREDICTORS[self.predictor]})"
        return f"{MEASURES[self.measure]}, {STATISTICS[self.statistic]} ({PREDICTORS[self.predictor]})"


def _all() -> Iterator[MetricName]:
    for predictor in PREDICTORS:
        for measure in MEASURES:
            for statistic in STATISTICS:
                # a baseline is not compared with itself
                if predictor != "baseline" or not statistic.startswith("difference"):
                    yield MetricName(predictor, measure, statistic)
    for predictor in PREDICTORS:
        for share in SHARES:
            yield MetricName(predictor, share)


ALL = tuple(_all())
