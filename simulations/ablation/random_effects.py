"""Several pairs of probes together: the mean gain over pairs, and what a next pair may expect."""

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


def variances(differences: Sequence[dict[str, Any]]) -> list[float]:
    """Return the variance over patients and training runs of each difference, as `comparison.Difference` tells it.

    Of a pair that was trained once, the runs' share is the mean of the others'.
    """
    deviations = [own["run_deviation"] for own in differences if own["run_deviation"] is not None]
    of_a_run = float(np.mean(np.square(deviations))) if deviations else 0.0
    found = []
    for own in differences:
        once = own["run_deviation"] is None
        low, high = (own[key] for key in (("low", "high") if once else ("run_low", "run_high")))
        found.append(((high - low) / 2 / HALF_WIDTH) ** 2 + (of_a_run if once else 0.0))
    return found
