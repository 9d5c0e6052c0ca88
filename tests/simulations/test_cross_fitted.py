"""The oracle in the method's own form: masks of a patient never train the model that the patient is measured by."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from clients.data.dataset import Dataset
from clients.data.site import load_site
from common.components import Role, Tensors
from common.networks import Networks
from common.study import Study
from server.state import ServerState
from simulations.ablation import cross_fitted, sections

SUPERVISE = {"task": "supervise", "trains": ["source_branch"], "steps": 12, "learning_rate": 1e-2}
REFINE = {
    "name": "refine",
    "rounds": 2,
    "begin": {"target_branch": "source_branch"},
    "source": SUPERVISE | {"trains": ["target_branch"], "steps": 6},
    "target": {"task": "self_train", "trains": ["target_branch"], "steps": 6, "learning_rate": 2e-3},
}


def test_every_patient_is_measured_once_and_by_a_model_that_never_saw_its_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    north = tiny.write_site(tmp_path / "north", "source")
    east = tiny.write_site(tmp_path / "east", "target", seed=1, gain=0.6)
    study = tiny.write_study(
        tmp_path / "study.yaml", stages=[{"name": "supervise", "rounds": 1, "source": SUPERVISE}, REFINE]
    )
    train, measure = cross_fitted.trained, cross_fitted.measure_patients
    seen: list[tuple[set[str], set[str]]] = []
    taught: list[set[str]] = []

    def trained(of: Study, state: ServerState, data: dict[Role, Dataset]) -> Tensors:
        taught.append(set(data["target"].site.patients("train")))
        after = train(of, state, data)
        first = {name: x for name, x in after.items() if name.startswith("source_branch")}
        assert all((x == state.components[name]).all() for name, x in first.items()), "the first branch stays"
        return after

    def measured(networks: Networks, of: Study, data: Dataset, *rest: Any) -> Any:
        found = measure(networks, of, data, *rest)
        seen.append((taught[-1], set(found["infusion"])))
        return found

    monkeypatch.setattr(cross_fitted, "trained", trained)
    monkeypatch.setattr(cross_fitted, "measure_patients", measured)
    out = tmp_path / "oracle.json"
    cross_fitted.main(study, source=north, target=east, stages=tmp_path / "stages", out=out, folds=2)
    everyone = set(load_site(east).patients("test", labelled=True))
    assert [own for taught_, own in seen if taught_ & own] == []
    assert [taught_ | own for taught_, own in seen] == [everyone, everyone]
    assert sorted(patient for _, own in seen for patient in own) == sorted(everyone)
    found = json.loads(out.read_text())
    assert found["difference"]["patients"] == len(everyone)
    dice = found["dice"]
    assert dice["oracle"] - dice["first branch"] == pytest.approx(found["difference"]["mean"])
    assert dice["oracle"] - dice["baseline"] == pytest.approx(found["gap"]["mean"])
    assert (dice["method"] - dice["baseline"]) / found["gap"]["mean"] == pytest.approx(found["closed"]["mean"])
    assert 0 < dice["oracle"] <= 1
    assert "kept-" not in out.read_text()
    rows = (dice[row] for row in ("first branch", "baseline", "method", "oracle"))
    assert found["patients"] == len(everyone) - -(-len(everyone) // 2)
    assert (
        f"| 2 | {found['patients']} | {' | '.join(f'{100 * value:.1f}' for value in rows)} |"
        in sections.cross_fitted([found])
    )


def test_masks_of_a_few_patients_are_those_of_so_many_outside_the_fold(tmp_path: Path) -> None:
    site = load_site(tiny.write_site(tmp_path / "east", "target"))
    first, *rest = site.patients("test", labelled=True)
    taught = cross_fitted.without_fold(site, {first}, 2)
    assert taught.patients("train") == rest[:2]
    assert taught.config.role == "source"


def test_the_share_of_the_gap_has_an_interval_over_patients() -> None:
    baseline = {str(i): 0.5 for i in range(40)}
    oracle = dict.fromkeys(baseline, 0.9)
    half = cross_fitted.closed(dict.fromkeys(baseline, 0.7), baseline, oracle)
    assert half == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    few = {name: 0.9 if int(name) % 4 == 0 else 0.5 for name in baseline}  # a quarter of them gains everything
    found = cross_fitted.closed(few, baseline, oracle)
    assert found["low"] < found["mean"] < found["high"]
    assert found["mean"] == pytest.approx(0.25)
