"""The trimmed mean: what one site sends, however large, moves nothing beyond what honest sites sent."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import content, study

from common.errors import ContractError, StudyError
from common.fixed_point import SCALE
from server.aggregation import RULES, aggregator

NAME = "source_branch.decoder/final_conv.bias"
VALUES = st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=12)


def mean_of(values: Sequence[float], rule: str = "trimmed_mean", patients: int = 1) -> float:
    total = aggregator(rule, most_patients=1000)
    for value in values:
        total.add({NAME: np.array([value], np.float32)}, patients)
    return float(total.mean()[NAME][0])


def test_a_study_names_every_rule() -> None:
    stage = content()["stages"][0]
    for rule in RULES:
        assert study(stages=[stage | {"aggregator": rule}]).stages[0].aggregator == rule
    with pytest.raises(StudyError, match="aggregator"):
        study(stages=[stage | {"aggregator": "nonsense"}])


def test_one_of_five_sites_cannot_steer_it_and_can_steer_the_mean() -> None:
    honest = [1.0, 2.0, 3.0, 4.0]
    assert mean_of([*honest, 1000.0]) == 3.0
    assert mean_of([*honest, -1000.0]) == 2.0
    assert mean_of([*honest, 1000.0], "exact_mean") > 200


def test_a_site_gains_nothing_by_declaring_more_patients() -> None:
    total = aggregator("trimmed_mean", most_patients=1000)
    for value, patients in ((1.0, 1), (1.0, 1), (2.0, 1), (2.0, 1), (50.0, 900)):
        total.add({NAME: np.array([value], np.float32)}, patients)
    assert float(total.mean()[NAME][0]) == pytest.approx(5 / 3)


@given(VALUES, st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_same_bits(values: list[float], random) -> None:
    assert mean_of(values) == mean_of(random.sample(values, len(values)))


@given(VALUES)
def test_it_is_the_mean_of_the_values_between_the_cut_ends(values: list[float]) -> None:
    cut = int(0.2 * len(values))
    kept = sorted(values)[cut : len(values) - cut]
    assert mean_of(values) == pytest.approx(sum(kept) / len(kept), rel=1e-9, abs=len(kept) / SCALE)


def test_an_update_that_could_overflow_is_refused_and_leaves_nothing_behind() -> None:
    total = aggregator("trimmed_mean", most_patients=1_000_000)
    with pytest.raises(ContractError, match="absurd-norm"):
        total.add({NAME: np.array([0.0, 2.0**30], np.float32)}, 1)
    assert total.patients == 0
    assert total.mean() == {}
