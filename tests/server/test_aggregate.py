"""The aggregate: worked out by hand, exact, and the same whoever comes first."""

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import one_stage

from common.components import Tensors
from common.errors import ContractError
from common.fixed_point import SCALE
from common.stage import Stage
from server.aggregation.exact_mean import ExactMean
from server.algorithm import updated

BOTH, SOURCE_ONLY, TARGET_ONLY = "target_branch.encoder/w", "source_branch.encoder/w", "projector/w"
OLD = {name: np.array([10, -1], np.float32) for name in (BOTH, SOURCE_ONLY, TARGET_ONLY, "infusion_head/w")}


def stage(weights: dict | None = None) -> Stage:
    encoders = ["source_branch.encoder", "target_branch.encoder"]
    own = one_stage(
        source={"task": "supervise", "trains": encoders},
        target={"task": "self_supervise", "trains": ["target_branch.encoder", "projector"]},
    ).stages[0]
    return Stage.model_validate(own.model_dump() | {"weights": weights or {}})


def summed(*replies: tuple[Tensors, int]) -> ExactMean:
    total = ExactMean(most_patients=sum(patients for _, patients in replies))
    for updates, patients in replies:
        total.add(updates, patients)
    return total


def update(*names: str, values: tuple[float, float]) -> Tensors:
    return {name: np.array(values, np.float32) for name in names}


# Sources: (1 * 1 + 3 * 2) / 4 = 1.75 and (1 * 4 + 3 * 0) / 4 = 1; the target: -0.5 and 8.
SOURCES = [(update(BOTH, SOURCE_ONLY, values=(1, 4)), 1), (update(BOTH, SOURCE_ONLY, values=(2, 0)), 3)]
TARGETS = [(update(BOTH, TARGET_ONLY, values=(-0.5, 8)), 2)]


def test_two_sources_and_a_target_give_the_result_worked_out_by_hand() -> None:
    new = updated(OLD, {"source": summed(*SOURCES), "target": summed(*TARGETS)}, stage())
    assert new[BOTH].tolist() == [10 + 0.5 * 1.75 + 0.5 * -0.5, -1 + 0.5 * 1 + 0.5 * 8]
    assert new[SOURCE_ONLY].tolist() == [10 + 1.75, -1 + 1]
    assert new[TARGET_ONLY].tolist() == [10 - 0.5, -1 + 8]
    assert new["infusion_head/w"] is OLD["infusion_head/w"]
    assert {x.dtype for x in new.values()} == {np.dtype(np.float32)}


def test_the_study_weighs_the_roles() -> None:
    weights = {"target_branch.encoder": {"source": 0.25, "target": 2.0}, "projector": {"target": 0.0}}
    new = updated(OLD, {"source": summed(*SOURCES), "target": summed(*TARGETS)}, stage(weights))
    assert new[BOTH].tolist() == [10 + 0.25 * 1.75 - 2 * 0.5, -1 + 0.25 * 1 + 2 * 8]
    assert new[TARGET_ONLY].tolist() == [10, -1]
    assert new[SOURCE_ONLY].tolist() == [11.75, 0]


def test_many_patients_of_one_role_do_not_drown_the_other() -> None:
    crowd = summed((update(BOTH, values=(1, 1)), 400))
    few = summed((update(BOTH, values=(-1, -1)), 36))
    assert updated(OLD, {"source": crowd, "target": few}, stage())[BOTH].tolist() == [10, -1]


def test_a_role_without_replies_moves_nothing() -> None:
    new = updated(OLD, {"source": summed(*SOURCES)}, stage())
    assert new[BOTH].tolist() == [10 + 0.5 * 1.75, -1 + 0.5]
    assert new[TARGET_ONLY] is OLD[TARGET_ONLY]
    assert updated(OLD, {}, stage()) == OLD


REPLIES = st.lists(
    st.tuples(
        st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3),
        st.integers(1, 500),
    ),
    min_size=1,
    max_size=6,
)


@given(REPLIES, st.randoms(use_true_random=False))
def test_any_order_of_replies_gives_the_same_bits(replies: list[tuple[list[float], int]], random) -> None:
    shuffled = random.sample(replies, len(replies))
    one, other = (
        summed(*(({BOTH: np.array(x, np.float32)}, n) for x, n in order)).mean() for order in (replies, shuffled)
    )
    assert one[BOTH].tobytes() == other[BOTH].tobytes()


@given(REPLIES)
def test_the_sum_is_the_exact_one_of_integers(replies: list[tuple[list[float], int]]) -> None:
    mean = summed(*(({BOTH: np.array(x, np.float32)}, n) for x, n in replies)).mean()[BOTH]
    patients = sum(n for _, n in replies)
    for place in range(3):
        fixed = sum(round(Fraction(float(np.float32(x[place]))) * 2**32) * n for x, n in replies)
        assert mean[place] == float(fixed) / (SCALE * patients)


def test_the_smallest_steps_of_many_sites_are_not_lost() -> None:
    tiny_step = {BOTH: np.array([2.0**-32], np.float32)}
    large = {BOTH: np.array([1000.0], np.float32)}
    total = summed((large, 1), *((tiny_step, 1) for _ in range(999)))
    assert total.mean()[BOTH][0] * 1000 == pytest.approx(1000 + 999 * 2.0**-32, rel=0, abs=1e-12)


def test_an_update_too_large_to_be_summed_is_refused_and_changes_nothing() -> None:
    total = summed(*SOURCES)
    before = total.mean()[BOTH].tobytes()
    with pytest.raises(ContractError, match="absurd-norm"):
        total.add(update(BOTH, SOURCE_ONLY, values=(0, 2.0**30)), 1_000_000)
    assert (total.mean()[BOTH].tobytes(), total.patients) == (before, 4)


def outcome(values: Sequence[float]) -> tuple[float, list[float]]:
    """The mean over the sites that were not refused, and their values; each has the most patients it may declare."""
    total, accepted = ExactMean(most_patients=1_000_000 * len(values)), []
    for x in values:
        try:
            total.add({BOTH: np.array([x], np.float32)}, 1_000_000)
        except ContractError:
            continue
        accepted.append(x)
    return float(total.mean()[BOTH][0]), accepted


#: By itself each of them fits; the sum of all does not.
FALLING = (1000.0, 500.0, 333.0, 250.0, 200.0)


def test_sums_of_large_updates_of_large_sites_do_not_wrap_around() -> None:
    assert outcome(FALLING) == (200.0, [200.0])
    largest = [214.0] * 5
    assert outcome(largest) == (214.0, largest)
    assert outcome([-x for x in largest]) == (-214.0, [-x for x in largest])


def test_whether_a_large_update_is_refused_does_not_depend_on_who_came_first() -> None:
    for order in itertools.permutations(FALLING):
        assert outcome(order) == (200.0, [200.0])
