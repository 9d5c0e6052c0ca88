"""A labelled probe alone: it learns, is measured on patients that it did not see, and leaves no name."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny

from clients.data.dataset import Dataset
from clients.data.site import load_site
from simulations.ablation.results import source_only
from simulations.ablation.source_only import held_out, main


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    root = tmp_path_factory.mktemp("labelled")
    tiny.write_study(root / "study.yaml")
    return (tiny.write_site(root / "north", "source"), tiny.write_site(root / "south", "source", seed=2), root)


def test_it_is_measured_on_no_patient_of_its_training(folders: Sequence[Path]) -> None:
    data = Dataset(load_site(folders[0]), tiny.study())
    own, other = held_out(data, own=True), held_out(data, own=False)
    trained = set(data.site.patients("train"))
    assert own.keys() == set(data.site.patients("val")) | set(data.site.patients("calibrate"))
    assert not trained & own.keys()
    assert trained < other.keys(), "of another scanner every patient is new"


def test_a_course_learns_repeats_and_names_nobody(folders: Sequence[Path]) -> None:
    north, south, root = folders
    outs = [root / f"{n}.json" for n in (1, 2)]
    for out in outs:
        main(root / "study.yaml", source=north, out=out, other=[south], artefacts=0.3, steps=24, every=12)
    found = [json.loads(out.read_text()) for out in outs]
    assert found[0]["rows"] == found[1]["rows"]
    rows = {(row["step"], row["site"], row["weights"]): row["dice"] for row in found[0]["rows"]}
    assert len(rows) == 2 * 2 * 2
    assert min(dice for (step, *_), dice in rows.items() if step == 24) > 0.8
    assert "kept-" not in json.dumps(found)
    page = source_only(found[:1])
    assert f"| 0.3 | 0 | 24 | last | {100 * rows[24, 'north', 'last']:.1f} (" in page
    assert "python -m simulations.ablation.source_only" in page
