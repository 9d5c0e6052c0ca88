"""Paired comparisons: known differences come back, with intervals that cover and p values that are corrected."""

import numpy as np
import pytest

from simulations.ablation.comparison import difference, holm
from simulations.ablation.page import section
from simulations.ablation.tally import tally
from simulations.ablation.variants import chosen


def seed_of(values: list[float] | np.ndarray, prefix: str = "p") -> dict[str, float]:
    return {f"{prefix}{i:03d}": float(v) for i, v in enumerate(values)}


def test_the_difference_is_paired_by_patient_whatever_their_order() -> None:
    reference = seed_of(np.linspace(0.1, 0.9, 30))
    better = dict(reversed(list({who: dice + 0.05 for who, dice in reference.items()}.items())))
    found = difference([better], [reference], same_patients=True)
    assert (found.mean, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))
    assert found.p < 1e-4
    assert (found.patients, found.gaining) == (30, 30)
    assert found.median == pytest.approx(0.05)


def test_a_few_patients_that_make_the_mean_show_in_the_median() -> None:
    reference = seed_of([0.5] * 9)
    row = reference | {"p000": 1.0, "p001": 0.45}
    found = difference([row], [reference], same_patients=True)
    assert (found.median, found.gaining) == (0, 1)
    assert found.mean == pytest.approx(0.05)


def test_the_same_patients_under_several_seeds_are_counted_once() -> None:
    reference = seed_of(np.linspace(0.1, 0.9, 20))
    seeds = [{who: dice + gain for who, dice in reference.items()} for gain in (0.0, 0.1, 0.2)]
    found = difference(seeds, [reference] * 3, same_patients=True)
    assert found.patients == 20
    assert found.seeds == pytest.approx((0.0, 0.1, 0.2))
    assert found.mean == pytest.approx(0.1)


def test_patients_of_different_seeds_are_different_people() -> None:
    rng = np.random.default_rng(1)
    seeds = [seed_of(rng.uniform(0, 1, 20)) for _ in range(3)]
    better = [
        {who: dice + noise for (who, dice), noise in zip(s.items(), rng.normal(0.03, 0.02, 20), strict=True)}
        for s in seeds
    ]
    found = difference(better, seeds, same_patients=False)
    assert found.patients == 60
    assert found.low < found.mean < found.high
    assert found.low > 0
    assert found.p < 1e-6


def test_rows_of_different_patients_are_refused() -> None:
    with pytest.raises(ValueError, match="different patients"):
        difference([{"a": 0.1}], [{"b": 0.1}], same_patients=True)


def test_equal_rows_differ_by_nothing() -> None:
    row = seed_of([0.4, 0.5, 0.6])
    found = difference([row], [row], same_patients=True)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        seeds = [seed_of(rng.normal(0.02, 0.1, 30)) for _ in range(2)]
        found = difference(seeds, [dict.fromkeys(s, 0.0) for s in seeds], same_patients=False)
        covered += found.low <= 0.02 <= found.high
    assert 0.90 <= covered / 200 <= 0.98


def test_holm_corrects_in_the_order_of_the_p_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_interval_over_runs_covers_the_truth_of_new_runs_and_one_run_has_none() -> None:
    rng = np.random.default_rng(3)
    covered = {"patients": 0, "runs": 0}
    for _ in range(200):
        luck = rng.normal(0, 0.03, 5)
        patients = rng.normal(0.02, 0.05, 30)
        seeds = [seed_of(patients + own + rng.normal(0, 0.02, 30)) for own in luck]
        found = difference(seeds, [dict.fromkeys(s, 0.0) for s in seeds], same_patients=True)
        assert found.run_low is not None
        assert found.run_high is not None
        covered["patients"] += found.low <= 0.02 <= found.high
        covered["runs"] += found.run_low <= 0.02 <= found.run_high
    assert covered["patients"] / 200 < 0.88, "the luck of the training runs is not in it"
    assert 0.88 <= covered["runs"] / 200 <= 0.99
    one = difference([seed_of([0.1, 0.2])], [seed_of([0.0, 0.0])], same_patients=True)
    assert (one.run_deviation, one.run_low, one.run_high) == (None, None, None)


def test_the_deviation_of_a_run_is_that_of_the_seeds_means() -> None:
    reference = seed_of(np.linspace(0.1, 0.8, 20))
    seeds = [{who: dice + gain for who, dice in reference.items()} for gain in (0.0, 0.1)]
    found = difference(seeds, [reference] * 2, same_patients=True)
    assert found.run_deviation == pytest.approx(0.1 / np.sqrt(2))


def test_patients_who_fail_are_counted_for_each_seed_and_shown() -> None:
    def cell(dice: list[float]) -> dict[str, object]:
        rows = {"baseline": seed_of(dice)}
        return {"seconds": 60.0, "bytes": 0, "sites": {r: {"role": r, "rows": rows} for r in ("source", "target")}}

    seeds = [{"baseline": cell([0.2, 0.49, 0.5, 0.9])}, {"baseline": cell([0.6, 0.7, 0.8, 0.9])}]
    found = tally(chosen(["baseline"]), seeds, same_patients=True)
    assert found["rows"]["baseline"]["target"]["failing"] == pytest.approx(0.25)
    whole = {"name": "x", "command": "c", "study": "s", "seeds": [0, 1], "hardware": "h", "data": {"pair": found}}
    assert "Dice below 50 %, mean over seeds: baseline 25 %." in section(whole, "x")
