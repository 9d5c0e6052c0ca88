"""Paired comparisons of an ablation's rows: over patients first, then over seeds; seed spread apart."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import wilcoxon

from common.metrics import bootstrap_interval

#: A true difference of this many half-widths of a 95 % interval is found in 80 % of studies: (1.96 + 0.84) / 1.96.
DETECTABLE = 1.43
#: patient -> Dice in [0, 1], frames averaged; one mapping a seed.
BySeed = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Difference:
    """A row less another, in Dice [-1, 1].

    Attributes:
        mean: over patients, then seeds; `low` and `high` its 95 % bootstrap interval over patients.
        seeds: the mean difference of each seed.
        p: of the two-sided signed-rank test (Wilcoxon 1945) over patients; 1 where all differences are 0.
        patients: independent patients behind it.
        median: of the patients' differences; far from the mean where a few patients make it.
        gaining: patients whose difference is above 0.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]
    p: float
    patients: int
    median: float
    gaining: int

    def as_json(self) -> dict[str, object]:
        """Return the fields for a JSON file."""
        return asdict(self)


def difference(row: BySeed, reference: BySeed, *, same_patients: bool) -> Difference:
    """Compare two rows by patient.

    Args:
        same_patients: whether a name is the same person for every seed, whose differences are then
            averaged over the seeds first. Otherwise every seed has patients of its own, and the
            bootstrap draws within each seed.

    Raises:
        ValueError: if the rows were measured on different patients.
    """
    seeds = []
    for dice, other in zip(row, reference, strict=True):
        if dice.keys() != other.keys():
            raise ValueError("the rows were measured on different patients")
        seeds.append(np.array([dice[p] - other[p] for p in sorted(dice)]))
    means = tuple(float(values.mean()) for values in seeds)
    if same_patients:
        values = np.mean(seeds, axis=0)
        low, high = bootstrap_interval(values)
    else:
        values = np.concatenate(seeds)
        low, high = bootstrap_interval(*seeds)
    p = 1.0 if not values.any() else float(wilcoxon(values).pvalue)
    gaining = int((values > 0).sum())
    return Difference(float(np.mean(means)), low, high, means, p, len(values), float(np.median(values)), gaining)


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979), in the order given."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, values[i] * (len(values) - rank)))
        corrected[i] = largest
    return corrected
