"""The mean over pairs, by numbers worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from simulations.ablation.random_effects import of_a_run, random_effects, together


def test_pairs_that_differ_by_more_than_their_errors_have_a_spread_of_their_own() -> None:
    # weights 1: Q = 8, two degrees of freedom, C = 3 - 1; so (8 - 2) / 2 = 3 between the pairs, and weights of 1 / 4
    found = random_effects([0, 2, 4], [1, 1, 1])
    assert found.mean == pytest.approx(2)
    assert found.between == pytest.approx(math.sqrt(3))
    error = math.sqrt(4 / 3)
    assert (found.low, found.high) == pytest.approx((2 - 4.30265 * error, 2 + 4.30265 * error), rel=1e-5)
    assert found.next_high == pytest.approx(2 + 12.7062 * math.sqrt(3 + 4 / 3), rel=1e-5)


def test_pairs_that_agree_are_not_surer_than_their_errors_allow() -> None:
    found = random_effects([1, 1, 1, 1], [4, 4, 4, 4])
    assert found.between == 0
    assert found.high - 1 == pytest.approx(float(t.ppf(0.975, 3)))  # the error of four means of variance 4 is 1


def test_a_surer_pair_counts_for_more() -> None:
    assert random_effects([0, 0, 0.5], [1, 1, 0.01]).mean > 2 * random_effects([0, 0, 0.5], [1, 1, 1]).mean


def of(mean: float, half: float, *seeds: float) -> dict[str, Any]:
    """A difference whose interval over patients reaches `half` to either side."""
    deviation = float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": list(seeds), "run_deviation": deviation}


def test_how_much_runs_differ_is_told_by_all_data_sets_together() -> None:
    close, apart, once = of(0.0, 0.01, -0.001, 0.001), of(0.0, 0.01, -0.03, 0.03), of(0.0, 0.01, 0.0)
    assert of_a_run([close, apart, once]) == pytest.approx((2 * 0.001**2 + 2 * 0.03**2) / 2)
    assert of_a_run([once]) == 0
    three = of(0.0, 0.01, -0.02, 0.0, 0.02)
    assert of_a_run([close, three]) == pytest.approx((2 * 0.001**2 + 2 * 0.02**2) / 3), "three runs tell twice as much"


def test_more_data_sets_of_one_pair_of_scanners_bring_runs_and_no_patients() -> None:
    one, other = of(0.01, 0.0196, 0.0, 0.02), of(0.03, 0.0392, 0.03)
    assert together([one], 0.0) == pytest.approx((0.01, 0.01**2))
    assert together([one, other], 0.0) == pytest.approx((0.02, 0.015**2))
    assert together([one] * 9, 0.0)[1] == pytest.approx(0.01**2)
    assert together([one] * 9, 0.06**2)[1] == pytest.approx(0.01**2 + 0.06**2 / 18)
