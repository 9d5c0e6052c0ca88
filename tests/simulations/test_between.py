"""Two ablations' baselines, compared by patient, and only where they belong together."""

import json
from pathlib import Path

import pytest

from common.errors import RunError
from simulations.ablation import results
from simulations.ablation.between import compared, main


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
    target = found["pairs"]["pair"]["target"]
    assert target["dice"] == pytest.approx([0.75, 0.55])
    assert target["difference"]["mean"] == pytest.approx(0.2)
    assert target["difference"]["seeds"] == pytest.approx([0.1, 0.3])
    page = results.beside([found])
    assert "| pair | unlabelled | 75.0 | 55.0 | +20.0 [+20.0, +20.0] |" in page
    assert "+10.0 to +30.0" in page
    assert "large.yaml, less small.yaml; seeds 0, 1" in page


def test_ablations_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one = finished(tmp_path / "one", "pair", {0: 0.1})
    with pytest.raises(RunError, match="with a common seed"):
        compared(one, finished(tmp_path / "two", "pair", {1: 0.1}))
    with pytest.raises(RunError, match="different patients; import both from one draw"):
        compared(one, finished(tmp_path / "three", "pair", {0: 0.1}, ("a", "c")))
    with pytest.raises(RunError, match=r"empty: expected the folder of a finished ablation, found no ablation\.json"):
        compared(one, tmp_path / "empty")
