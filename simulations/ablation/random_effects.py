"""Several pairs of scanners together: the mean gain over pairs, and what a next pair may expect."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t

#: Half of a 95 % interval over a normal deviation.
HALF_WIDTH = 1.96
#: Fewer pairs say nothing of the spread between pairs.
LEAST_PAIRS = 3


@dataclass(frozen=True)
class Pooled:
    """A mean over pairs.

    Attributes:
        mean: of the pairs; `low` and `high` its 95 % interval.
        between: standard deviation of the pairs' true gains.
        next_low, next_high: 95 % prediction interval of the true gain on a further pair.
    """

    mean: float
    low: float
    high: float
    between: float
    next_low: float
    next_high: float


def random_effects(means: Sequence[float], variances: Sequence[float]) -> Pooled:
    """Pool the gains of three pairs or more, each with its own error.

    The variance between pairs is DerSimonian and Laird's (1986), the mean's interval that of Hartung and Knapp (2001),
    which holds for few pairs too, the prediction interval that of Higgins, Thompson and Spiegelhalter (2009).

    Args:
        variances: of each mean, above 0.
    """
    found, within = np.array(means), np.array(variances)
    count, fixed = len(found), 1 / within
    spread = float((fixed * (found - np.average(found, weights=fixed)) ** 2).sum())
    between = max(0.0, (spread - (count - 1)) / float(fixed.sum() - (fixed**2).sum() / fixed.sum()))
    weights = 1 / (within + between)
    mean = float(np.average(found, weights=weights))
    # never below the usual variance: by chance alone few pairs can lie closer together than their errors allow
    scale = max(1.0, float((weights * (found - mean) ** 2).sum()) / (count - 1))
    error = math.sqrt(scale / float(weights.sum()))
    half = float(t.ppf(0.975, count - 1)) * error
    reach = float(t.ppf(0.975, count - 2)) * math.sqrt(between + error**2)
    return Pooled(mean, mean - half, mean + half, math.sqrt(between), mean - reach, mean + reach)


def of_a_run(differences: Sequence[dict[str, Any]]) -> float:
    """Return the variance of a single training run, over all data sets of several runs together.

    Of a data set's own two runs it is not to be known: they may lie close together by chance.
    """
    several = [(len(own["seeds"]) - 1, own["run_deviation"]) for own in differences if own["run_deviation"] is not None]
    freedom = sum(count for count, _ in several)
    return sum(count * deviation**2 for count, deviation in several) / freedom if freedom else 0.0


def together(differences: Sequence[dict[str, Any]], run: float) -> tuple[float, float]:
    """Return the mean over data sets of one pair of scanners, and its variance.

    They share scanners and test patients, so that patients count as if they were the same in all of them, and more data
    sets bring more training runs and no more patients.

    Args:
        differences: as `comparison.Difference` tells them.
        run: variance of a single training run, see `of_a_run`.
    """
    patients = float(np.mean([(own["high"] - own["low"]) / 2 / HALF_WIDTH for own in differences]))
    runs = sum(len(own["seeds"]) for own in differences)
    return float(np.mean([own["mean"] for own in differences])), patients**2 + run / runs
