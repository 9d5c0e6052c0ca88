"""Infusion heads on a third probe: they learn which branch to believe, and no fixed weight passes the best one."""

import json
from pathlib import Path

import pytest
import tiny
import torch

from clients.data.dataset import Dataset
from clients.data.site import Site
from common.networks import InfusionHead
from simulations.ablation import heads, sections

SURE, UNSURE = 4.0, 0.4
SUPERVISE = {"task": "supervise", "trains": ["source_branch"], "steps": 12, "learning_rate": 1e-2}
REFINE = {
    "name": "refine",
    "rounds": 1,
    "begin": {"target_branch": "source_branch"},
    "source": SUPERVISE | {"trains": ["target_branch"], "steps": 6},
    "target": {"task": "self_train", "trains": ["target_branch"], "steps": 6, "learning_rate": 2e-3},
}


@pytest.fixture
def lessons(site: Site) -> list[heads.Said]:
    """Frames on which one branch says the mask for sure and the other its opposite, unsurely; who is right changes."""
    of = tiny.study()
    data = Dataset(site, of)
    found = []
    for number, frame in enumerate(f for f in site.frames if f.mask is not None):
        sample = data.labelled(frame)
        assert sample.truth is not None
        height, width = sample.place.content
        right = (2 * sample.truth - 1)[None, None, :height, :width]
        both = (SURE * right, -UNSURE * right)
        found.append(heads.Said(sample, *(both if number % 2 else both[::-1])))
    return found


@pytest.mark.parametrize("kind", [InfusionHead, heads.ImageHead])
def test_a_head_learns_to_believe_the_branch_that_is_sure_where_that_one_is_right(
    kind: type[InfusionHead], lessons: list[heads.Said]
) -> None:
    of = tiny.study()
    head = heads.learnt(kind, 0.5, lessons, 0.0, seed=1)
    for own in lessons[:2]:
        rows = heads.rows_of({heads.FIXED: InfusionHead(0.5), "learnt": head}, of, own)
        assert rows["learnt"] > 0.95
        assert rows["learnt"] >= rows[heads.FIXED]
        weight = own.fused(head).weight
        assert (weight > 0.5).all() if own is lessons[1] else (weight < 0.5).all()


def test_a_head_that_is_held_stays_near_its_share(lessons: list[heads.Said]) -> None:
    free, held = (heads.learnt(InfusionHead, 0.25, lessons, shrinkage, seed=1) for shrinkage in (0.0, 1e3))
    away = [(lessons[1].fused(head).weight - 0.25).abs().max() for head in (free, held)]
    assert away[1] < 0.1 < away[0]


def test_a_head_learns_the_same_each_time_whatever_was_drawn_before(lessons: list[heads.Said]) -> None:
    first = heads.learnt(heads.ImageHead, 0.5, lessons, 0.0, seed=1)
    torch.rand(3)
    again, other = (heads.learnt(heads.ImageHead, 0.5, lessons, 0.0, seed=seed) for seed in (1, 2))
    assert torch.equal(first.hidden.weight, again.hidden.weight)
    assert not torch.equal(first.hidden.weight, other.hidden.weight)
    assert not first.log_temperature.any(), "all rows weigh the same two maps"


def test_the_best_weight_of_an_image_is_no_worse_than_any_fixed_one(lessons: list[heads.Said]) -> None:
    of = tiny.study(source_share=0.23)  # not among the weights that are tried for all studies
    for own in lessons[:4]:
        rows = heads.rows_of({heads.FIXED: InfusionHead(0.23)}, of, own)
        assert rows[heads.BEST] >= max(value for name, value in rows.items() if name != heads.BEST)
        assert rows[heads.BEST] > 0.95
        assert min(rows["source branch"], rows["target branch"]) < 0.5


def test_the_command_writes_means_for_every_head_and_no_patient(tmp_path: Path) -> None:
    north, west = (tiny.write_site(tmp_path / name, "source", seed=i) for i, name in enumerate(("north", "west")))
    east = tiny.write_site(tmp_path / "east", "target", seed=2, gain=0.6)
    supervise = {"name": "supervise", "rounds": 1, "source": SUPERVISE}
    file = tiny.write_study(tmp_path / "study.yaml", stages=[supervise, REFINE], source_share=0.25)
    out = tmp_path / "heads.json"
    heads.main(file, source=north, target=east, other=west, stages=tmp_path / "stages", out=out)
    found = json.loads(out.read_text())
    assert (found["pair"], found["other"], found["share"]) == (["north", "east"], "west", 0.25)
    dice = found["dice"]
    learnt = [f"head per {what}{held}" for what in ("pixel", "image") for held in ("", ", held near the share")]
    assert set(dice) == {heads.FIXED, *learnt, "source branch", "target branch", "average", heads.BEST}
    assert dice[heads.BEST] >= max(dice[row] for row in (heads.FIXED, "average", "source branch", "target branch"))
    for name, own in found["difference"].items():
        assert own["mean"] == pytest.approx(dice[name] - dice[heads.FIXED])
    assert "kept-" not in out.read_text()
    page = sections.heads([found])
    assert f"| north -> east | west | 0 | 0.25 | average | {100 * dice['average']:.1f} |" in page
    assert f"| {heads.FIXED} | {100 * dice[heads.FIXED]:.1f} |  |" in page
