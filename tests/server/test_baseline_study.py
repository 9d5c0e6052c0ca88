"""A deployed study gets its baseline by two studies, each approved; their run says what the method is worth."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from finished import Finished
from tiny import study, workers, write_study

from common.baseline import baseline_of
from common.run_folder import RunFolder
from common.study import load_study, read_study_of_run
from crossprobe import main
from server.report.summary import write_summary
from server.run import run_study
from simulations.local import LocalTransport


def test_a_baseline_is_run_as_a_study_and_then_compared_with(
    pair: Sequence[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(tmp_path / "study.yaml", name="tiny")
    first, second = tmp_path / "first.yaml", tmp_path / "kit" / "second.yaml"
    second.parent.mkdir()

    assert main(["study", "baseline", str(file), "--out", str(first)]) == 0
    baseline = load_study(first)
    assert baseline.hash() == baseline_of(study()).hash()
    assert (baseline.needs("source"), baseline.needs("target")) == (1, 0)
    run_study(baseline, LocalTransport(workers(baseline, pair[:1])), tmp_path / "baseline")
    words = ["study", "baseline", str(file), "--run", str(tmp_path / "baseline"), "--out", str(second), "--json"]
    capsys.readouterr()
    assert main(words) == 0
    compared = load_study(second)
    assert json.loads(capsys.readouterr().out)["hash"] == compared.hash() != study().hash()
    assert compared.initial["baseline"].file.samefile(RunFolder(tmp_path / "baseline").model)

    run_study(compared, LocalTransport(workers(compared, pair)), tmp_path / "run")
    assert set(write_summary(tmp_path / "run")["difference_to_baseline"]) == {"north", "east"}


def test_a_baseline_of_the_longest_name_is_a_study_that_can_be_read(tmp_path: Path) -> None:
    file = write_study(tmp_path / "study.yaml", name="a" * 63)
    assert main(["study", "baseline", str(file), "--out", str(tmp_path / "first.yaml")]) == 0
    assert load_study(tmp_path / "first.yaml").name == "a" * 54 + "-baseline"


def test_only_the_studys_own_finished_baseline_is_taken(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write_study(tmp_path / "study.yaml"), tmp_path / "second.yaml"
    assert read_study_of_run(finished.run).hash() != baseline_of(study()).hash()
    assert main(["study", "baseline", str(file), "--run", str(finished.run), "--out", str(out)]) == 1
    assert "expected the run of tiny-baseline" in capsys.readouterr().err
    assert main(["study", "baseline", str(file), "--run", str(tmp_path), "--out", str(out)]) == 1
    assert "holds no run" in capsys.readouterr().err
    assert not out.exists()


def test_a_run_that_was_simulated_has_no_status_of_flowers_and_the_user_is_told_where_to_look(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "status", str(finished.run)]) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "was not started by `crossprobe study run`" in shown
    assert f"crossprobe report {finished.run}" in shown
