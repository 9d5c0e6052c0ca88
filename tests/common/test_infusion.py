"""Small parts of a prediction are dropped, and nothing else is."""

import pytest
import torch
from tiny import study

from common.infusion import MAPS, predict_maps, without_small_parts
from common.networks import initial_networks


def spots(*sides: int) -> torch.Tensor:
    """Squares of these sides, 0.9 on 0.3, at distances from each other, [64, 64]."""
    p = torch.full((64, 64), 0.3)
    for i, side in enumerate(sides):
        p[2 : 2 + side, 20 * i : 20 * i + side] = 0.9
    return p


@pytest.mark.parametrize(("share", "left"), [(0.0, 3), (0.05, 2), (0.2, 2), (0.5, 1), (1.0, 1)])
def test_parts_below_the_share_of_the_largest_go(share: float, left: int) -> None:
    p = spots(10, 5, 2)  # 100, 25 and 4 pixels
    kept = without_small_parts(p, share)
    assert int((kept > 0.5).sum()) == sum((100, 25, 4)[:left])
    assert torch.equal(kept[p <= 0.5], p[p <= 0.5])


def test_a_prediction_of_one_part_or_none_stays() -> None:
    for p in (spots(3), spots()):
        assert without_small_parts(p, 1.0) is p


def test_parts_of_one_size_all_stay() -> None:
    assert torch.equal(without_small_parts(spots(5, 5, 5), 1.0), spots(5, 5, 5))


def test_every_predictor_is_cleaned_and_no_weight_is() -> None:
    image, valid = torch.rand(32, 32, generator=torch.Generator().manual_seed(0)), torch.ones(32, 32, dtype=torch.bool)
    networks = initial_networks(study())
    as_is, cleaned = (
        predict_maps(networks, study(smallest_part=share), image, valid, (*MAPS, "baseline")) for share in (0.0, 1.0)
    )
    for name in (*MAPS, "baseline"):
        expected = as_is[name] if name == "weight" else without_small_parts(as_is[name], 1.0)
        assert torch.equal(cleaned[name], expected), name
    assert any(not torch.equal(cleaned[name], as_is[name]) for name in as_is)


def test_what_a_network_says_of_padding_pushes_no_part_out(monkeypatch: pytest.MonkeyPatch) -> None:
    said = torch.full((1, len(MAPS), 32, 32), 0.1)
    said[..., 4:8, 4:8] = 0.9  # 16 pixels of a lesion
    said[..., :, 28:] = 0.9  # 128 on the padding at the right, where no loss ever was
    monkeypatch.setattr("common.infusion._stacked", lambda networks, x, names, flips: said)
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[:, 26:] = False
    of = study(smallest_part=0.2)
    found = predict_maps(initial_networks(of), of, torch.rand(32, 32), valid, ["average"])["average"]
    assert int((found > 0.5).sum()) == 16
    assert (found[4:8, 4:8] > 0.5).all()


@pytest.mark.parametrize(("name", "other"), [("source_branch", "target_branch"), ("target_branch", "source_branch")])
def test_one_branch_is_predicted_without_the_other_and_is_the_same(
    name: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = study()
    networks = initial_networks(of)
    networks.infusion_head.log_temperature.data = torch.tensor([0.7, -0.3])
    image = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(32, 32, dtype=torch.bool)
    together = predict_maps(networks, of, image, valid, MAPS)[name]
    monkeypatch.setattr(networks.branch(other), "forward", lambda x: pytest.fail("the other branch was asked"))
    assert torch.equal(predict_maps(networks, of, image, valid, [name])[name], together)
