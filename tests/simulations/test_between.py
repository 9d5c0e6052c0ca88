"""Two ablations' baselines, compared by patient, and only where they belong together."""

import json
from pathlib import Path

import pytest

from common.errors import RunError
from simulations.ablation import sections
from simulations.ablation.between import compared, main
from simulations.ablation.tally import RELEASED


def finished(out: Path, data: str, gains: dict[int, float], patients: tuple[str, ...] = ("a", "b")) -> Path:
    """Write what a finished ablation leaves of its baseline: patient a at 0.5, b at 0.6, and a gain with each seed."""
    for seed, gain in gains.items():
        rows = {"baseline": {patient: 0.5 + 0.1 * index + gain for index, patient in enumerate(patients)}}
        sites = {"north": {"role": "source", "rows": rows}, "east": {"role": "target", "rows": rows}}
        file = out / "cells" / data / f"seed-{seed}" / "baseline.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"sites": sites}))
    summary = {"study": f"{out.name}.yaml", "seeds": list(gains), "data": {data: {}}}
    (out / "ablation.json").write_text(json.dumps(summary))
    return out


def test_what_the_one_wins_on_the_other_is_told_by_patient_and_by_run_and_stands_on_the_page(tmp_path: Path) -> None:
    one = finished(tmp_path / "large", "pair", {0: 0.1, 1: 0.3})
    other = finished(tmp_path / "small", "same-pair", {0: 0.0, 1: 0.0, 2: 9.0})  # one has no twin
    main(one, other, tmp_path / "between" / "size.json")
    found = json.loads((tmp_path / "between" / "size.json").read_text())
    assert set(found["pairs"]["pair"]["target"]) == {"baseline"}  # it has no released model
    target = found["pairs"]["pair"]["target"]["baseline"]
    assert target["dice"] == pytest.approx([0.75, 0.55])
    assert target["difference"]["mean"] == pytest.approx(0.2)
    assert target["difference"]["seeds"] == pytest.approx([0.1, 0.3])
    page = sections.beside([found])
    assert "| pair | 0, 1 | unlabelled | baseline | 75.0 | 55.0 | +20.0 [+20.0, +20.0] |" in page
    assert "+10.0 to +30.0" in page
    assert "large.yaml, less the baseline of small.yaml; seeds 0, 1" in page


def test_the_released_model_stands_beside_the_others_baseline_too(tmp_path: Path) -> None:
    one = finished(tmp_path / "one", "pair", {0: 0.1})
    baseline = one / "cells" / "pair" / "seed-0" / "baseline.json"
    sites = json.loads(baseline.read_text())["sites"]
    for site in sites.values():
        site["rows"] = {RELEASED: {patient: dice + 0.2 for patient, dice in site["rows"]["baseline"].items()}}
    baseline.with_name("all.json").write_text(json.dumps({"sites": sites}))
    found = compared(one, finished(tmp_path / "other", "pair", {0: 0.0}))["pairs"]["pair"]["source"]
    assert {row: own["difference"]["mean"] for row, own in found.items()} == pytest.approx(
        {"baseline": 0.1, RELEASED: 0.3}
    )


def test_ablations_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one = finished(tmp_path / "one", "pair", {0: 0.1})
    with pytest.raises(RunError, match="with a common seed"):
        compared(one, finished(tmp_path / "two", "pair", {1: 0.1}))
    with pytest.raises(RunError, match="different patients; import both from one draw"):
        compared(one, finished(tmp_path / "three", "pair", {0: 0.1}, ("a", "c")))
    with pytest.raises(RunError, match=r"empty: expected the folder of a finished ablation, found no ablation\.json"):
        compared(one, tmp_path / "empty")
