"""The mean over pairs, by numbers worked out by hand."""

import math
from typing import Any

import pytest
from scipy.stats import t

from simulations.ablation.random_effects import random_effects, variances


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


def test_a_pair_that_was_trained_once_has_the_others_spread_over_runs() -> None:
    once: dict[str, Any] = {"low": -0.0196, "high": 0.0196, "run_deviation": None}
    twice: dict[str, Any] = {"low": 0.0, "high": 0.0, "run_low": -0.0392, "run_high": 0.0392, "run_deviation": 0.03}
    assert variances([once, twice]) == pytest.approx([0.01**2 + 0.03**2, 0.02**2])
    assert variances([once]) == pytest.approx([0.01**2])
