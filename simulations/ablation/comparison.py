"""Paired comparisons of an ablation's rows: over patients first, then over seeds; seed spread apart."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import wilcoxon

from common.metrics import bootstrap_interval

#: A true difference of this many half-widths of a 95 % interval is found in 80 % of studies: (1.96 + 0.84) / 1.96.
DETECTABLE = 1.43
#: Of the bootstrap over patients and training runs.
DRAWS = 2000
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
        run_deviation: standard deviation of the seeds' mean differences, in Dice; None for one seed.
        run_low, run_high: 95 % bootstrap interval over patients and training runs; None for one seed.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]
    p: float
    patients: int
    median: float
    gaining: int
    run_deviation: float | None = None
    run_low: float | None = None
    run_high: float | None = None

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
    median = float(np.median(values))
    runs: tuple[float | None, ...] = (None, None, None)
    if len(means) > 1:
        runs = (float(np.std(means, ddof=1)), *_over_runs([values] if same_patients else seeds, means))
    return Difference(float(np.mean(means)), low, high, means, p, len(values), median, gaining, *runs)


def _over_runs(groups: Sequence[np.ndarray], means: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of the groups' means, patients and training runs both redrawn.

    Few runs redrawn vary less than new ones would, by (n - 1) / n in variance: that is put right. How much runs differ
    two of them hardly tell: where they lie close together by chance the interval is too narrow.
    """
    patients, runs, values = np.random.default_rng(0), np.random.default_rng(1), np.array(means)
    drawn = np.mean([own[patients.integers(0, len(own), (DRAWS, len(own)))].mean(1) for own in groups], axis=0)
    luck = values[runs.integers(0, len(values), (DRAWS, len(values)))].mean(1) - values.mean()
    low, high = np.quantile(drawn + luck * np.sqrt(len(values) / (len(values) - 1)), [0.025, 0.975])
    return float(low), float(high)


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979), in the order given."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, values[i] * (len(values) - rank)))
        corrected[i] = largest
    return corrected
