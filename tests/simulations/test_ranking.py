"""What a label-free score says of a collapsed, a blown-up and a perfect model, and how scores are judged."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from simulations.ablation import candidates, ranking, verdict
from simulations.ablation.candidates import SPOILS, brightest_elsewhere, resized, shifted
from simulations.ablation.label_free import agreement, certainty, consistency, information, prior_match
from simulations.ablation.ranking import main
from simulations.ablation.results import ranked
from simulations.ablation.verdict import GATED, INFORMATION, SOURCE, auroc, judged

SIDE = 32
VALID = [torch.ones(SIDE, SIDE, dtype=torch.bool)] * 3
PRIOR = 8 * 16 / SIDE**2


def truth(number: int, grow: int = 0) -> Tensor:
    """A rectangle of 8 x 16 pixels at another place for each number, larger by `grow` on each side."""
    mask = torch.zeros(SIDE, SIDE)
    mask[6 + 4 * number - grow : 14 + 4 * number + grow, 8 - grow : 24 + grow] = 1
    return mask


def model(grow: int = 0, sureness: float = 1.0) -> list[Tensor]:
    return [0.5 + (truth(n, grow) - 0.5) * sureness for n in range(3)]


PERFECT, UNSURE, BLOWN_UP = model(), model(sureness=0.4), model(grow=4)
COLLAPSED = [torch.zeros(SIDE, SIDE)] * 3


def test_agreement_is_the_overlap_of_two_models() -> None:
    assert agreement(PERFECT, PERFECT) == 1
    assert agreement(BLOWN_UP, PERFECT) == pytest.approx(2 * 128 / (128 + 16 * 24))
    assert agreement(COLLAPSED, COLLAPSED) == 0, "two models that mark nothing agree on no foreground"


def test_certainty_falls_for_a_collapse_and_information_does_not() -> None:
    assert certainty(PERFECT, VALID) > certainty(UNSURE, VALID)
    assert certainty(COLLAPSED, VALID) == pytest.approx(certainty(PERFECT, VALID), abs=1e-6)
    assert information(COLLAPSED, VALID) == pytest.approx(0, abs=1e-6)
    assert information(PERFECT, VALID) > information(UNSURE, VALID) > 0


def test_what_lies_on_padding_is_not_counted() -> None:
    half = [torch.arange(SIDE).expand(SIDE, SIDE) < SIDE // 2] * 3
    elsewhere = [torch.where(valid, p, torch.tensor(0.5)) for p, valid in zip(PERFECT, half, strict=True)]
    assert certainty(elsewhere, half) == certainty(PERFECT, half)
    assert certainty(elsewhere, VALID) < certainty(PERFECT, VALID)


def test_consistency_is_the_overlap_of_masks_and_a_collapse_has_none() -> None:
    assert consistency(PERFECT, UNSURE) == 1, "a mask counts, not how sure it is"
    assert consistency(PERFECT, BLOWN_UP) == pytest.approx(128 / (16 * 24))
    assert consistency(COLLAPSED, COLLAPSED) == 0
    assert consistency(PERFECT, [*PERFECT[:2], COLLAPSED[0]]) == 1, "a median over images"


def test_the_prior_falls_for_too_much_and_for_too_little() -> None:
    assert prior_match(PERFECT, PRIOR, SIDE) == 1
    assert prior_match(BLOWN_UP, PRIOR, SIDE) == pytest.approx(128 / (16 * 24))
    assert prior_match(COLLAPSED, PRIOR, SIDE) == 0


def test_spoiled_labels_are_what_they_are_called() -> None:
    mask = truth(1).numpy() > 0.5
    image = np.full(mask.shape, 0.1, np.float32)
    image[mask], image[25:30, 2:30] = 1.0, 0.6
    assert not resized(mask, 0).any()
    small, large = resized(mask, 0.5), resized(mask, 2)
    assert small.sum() == mask.sum() / 2
    assert not (small & ~mask).any(), "what is left lies within"
    assert large.sum() == 2 * mask.sum()
    assert not (mask & ~large).any(), "what grew holds the old"
    assert shifted(mask)[mask.nonzero()[0] + SIDE // 4, mask.nonzero()[1]].all()
    elsewhere = brightest_elsewhere(image, mask)
    assert elsewhere.sum() == mask.sum()
    assert not (elsewhere & mask).any()
    assert elsewhere[26:29, 4:28].mean() > 0.8
    empty = np.zeros_like(mask)
    assert [bool(spoil(image, empty).any()) for spoil in SPOILS.values()] == [False] * len(SPOILS)


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    assert auroc([0.1, 0.2], [0.3, 0.9]) == 1
    assert auroc([0.3, 0.9], [0.1, 0.2]) == 0
    assert auroc([0.5], [0.5, 0.5]) == 0.5
    assert auroc([0.1, 0.5], [0.3, 0.9]) == 0.75


def row(name: str, dice: float, *scores: float, steps: int = 1, parent: str = "") -> dict[str, Any]:
    named = dict(zip((INFORMATION, SOURCE), scores, strict=True))
    return {"name": name, "planted": bool(parent), "steps": steps, "parent": parent, "dice": dice, "scores": named}


def test_a_score_is_judged_by_failures_found_order_and_what_its_pick_costs() -> None:
    found = judged(
        [
            row("a", 0.6, 0.6, 0.9),
            row("b", 0.8, 0.8, 0.7),
            row("c", 0.7, 0.7, 0.8, steps=3),
            row("spoiled", 0.2, 0.1, 1.0, parent="b"),
            row("spoiled in vain", 0.75, 0.99, 2.0, parent="b"),
        ]
    )
    assert found["harmless"] == ["spoiled in vain"], "it lost less than a failure has to, and is neither"
    assert (found["honest"], found["failures"], found["best"]) == (3, 1, "b")
    right, wrong = found["scores"][INFORMATION], found["scores"][SOURCE]
    assert (right["auroc"], right["rank_correlation"], right["picked"], right["regret"]) == (1, 1, "b", 0)
    assert (wrong["auroc"], wrong["rank_correlation"], wrong["picked"]) == (0, -1, "spoiled")
    assert wrong["regret"] == pytest.approx(0.6)
    assert found["regret_of_longest"] == pytest.approx(0.1)
    assert found["regret_of_chance"] == pytest.approx(0.1)


def test_whoever_lost_the_labelled_probe_is_picked_last_however_sure_it_is() -> None:
    rows = [
        row("weak", 0.6, 0.20, 0.90),
        row("strong", 0.7, 0.30, 0.86),
        row("sure of nothing", 0.1, 0.60, 0.50, parent="strong"),
    ]
    found = judged(rows)["scores"]
    assert found[INFORMATION]["picked"] == "sure of nothing"
    assert (found[GATED]["picked"], found[GATED]["auroc"], found[GATED]["regret"]) == ("strong", 1, 0)
    rows[1] = row("strong", 0.7, 0.30, 0.80)
    assert judged(rows)["scores"][GATED]["picked"] == "weak", "too far below the best on the labelled probe"


def test_a_pool_is_trained_scored_and_shown_and_names_nobody(
    pair: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "MARKS", (2, 4))
    monkeypatch.setattr(candidates, "EARLY", 2)
    monkeypatch.setattr(candidates, "REFERENCE", "plain, 4 steps")
    monkeypatch.setattr(ranking, "REFERENCE", "plain, 4 steps")
    monkeypatch.setattr(candidates, "ROUND", 1)
    monkeypatch.setattr(candidates, "ROUNDS", 2)
    monkeypatch.setattr(candidates, "SPOILED", 2)
    monkeypatch.setattr(ranking, "STUDENT_STEPS", 2)
    monkeypatch.setattr(verdict, "HARM", -1.0)  # so short a training harms little: all count
    out = tmp_path / "found.json"
    main(tiny.write_study(tmp_path / "study.yaml"), source=pair[0], target=[pair[1]], out=out)
    found = json.loads(out.read_text())
    rows = {row["name"]: row for row in found["pairs"]["east"]}
    east = judged(found["pairs"]["east"])
    assert len(rows) == 2 * (2 + 1 + candidates.ROUNDS) + len(SPOILS)
    assert rows["plain, self-trained, round 2"]["steps"] == 4 + 2 * 1
    assert rows["plain, 4 steps"]["scores"]["agreement with the plain source model"] == 1
    assert east["failures"] == len(SPOILS)
    assert "kept-" not in out.read_text()
    mine = east["scores"]["reverse validation"]
    page = ranked([found])
    cells = f"{mine['auroc']:.2f}, {mine['rank_correlation']:+.2f}, {100 * mine['regret']:.1f}"
    assert f"| reverse validation | {cells} |" in page
    assert "python -m simulations.ablation.ranking" in page
