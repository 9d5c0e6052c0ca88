"""The label-free score: 1 for a stable model with a plausible foreground, 0 for a collapsed one."""

import pytest
import torch
from torch import Tensor

from clients.learning.scoring import Views, label_free_score, mean_area

COUNT, SIDE = 3, 32
PRIOR, TOLERANCE = 0.25, 1.5


def box(share: float = PRIOR, shift: int = 0) -> Tensor:
    """Certain foreground in the given share of rows, [S, S]."""
    maps = torch.zeros(SIDE, SIDE)
    maps[shift : shift + round(share * SIDE)] = 1
    return maps


def score(plain: Tensor, shifted: Tensor, prior: float | None) -> float:
    return label_free_score([Views(plain, shifted)] * COUNT, prior, SIDE, TOLERANCE)


def test_a_stable_model_with_foreground_at_the_prior_scores_one() -> None:
    assert score(box(), box(), PRIOR) == pytest.approx(1)
    assert score(box(), box(), None) == pytest.approx(1)


@pytest.mark.parametrize(("faint", "prior"), [(0, None), (0, 0.01), (0, PRIOR), (0.01, PRIOR), (0.49, PRIOR)])
def test_a_collapsed_model_scores_zero(faint: float, prior: float | None) -> None:
    collapsed = torch.full((SIDE, SIDE), faint)
    assert score(collapsed, collapsed, prior) == 0


def test_a_model_that_calls_everything_foreground_scores_low() -> None:
    full = torch.ones(SIDE, SIDE)
    assert score(full, full, PRIOR) == pytest.approx(1.5 * PRIOR)


def test_a_model_that_changes_with_the_device_scores_lower() -> None:
    scores = [score(box(), box(shift=rows), PRIOR) for rows in (0, 2, 4, 8)]
    assert scores == sorted(scores, reverse=True)
    assert scores == [pytest.approx(1), pytest.approx(0.75), pytest.approx(0.5), pytest.approx(0)]


@pytest.mark.parametrize("share", [PRIOR / 1.45, PRIOR, PRIOR * 1.45])
def test_foreground_within_the_tolerance_costs_nothing(share: float) -> None:
    maps = box(share)
    prior = PRIOR * float(maps.mean()) / share  # rows are whole, so the share is rounded
    assert score(maps, maps, prior) == pytest.approx(1)


@pytest.mark.parametrize("direction", [-1, 1])
def test_the_score_falls_the_further_the_foreground_is_from_the_prior(direction: int) -> None:
    maps = box(0.5)
    scores = [score(maps, maps, 0.5 * factor**direction) for factor in (1, 2, 4, 8)]
    assert scores == [pytest.approx(1), pytest.approx(0.75), pytest.approx(0.375), pytest.approx(0.1875)]


def test_the_score_stays_between_0_and_1_for_any_maps() -> None:
    generator = torch.Generator().manual_seed(0)
    for prior in (None, 0.0, 1e-6, 0.3, 1.0):
        plain, shifted = torch.rand(2, SIDE, SIDE, generator=generator)
        assert 0 <= score(plain, shifted, prior) <= 1


def test_a_deeper_image_around_the_same_anatomy_has_the_same_area() -> None:
    deep = torch.cat([box(), torch.zeros(3 * SIDE, SIDE)])
    assert mean_area([deep], 0.5, SIDE) == mean_area([box()], 0.5, SIDE) == PRIOR
    assert label_free_score([Views(deep, deep)], PRIOR, SIDE, TOLERANCE) == pytest.approx(1)
