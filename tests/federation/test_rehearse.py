"""The coordinator's rehearsal as one command: it ends with a model, and leaves no process whenever it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import processes_of

from common.run_folder import RunFolder
from crossprobe import main
from simulations.rehearsal import RECORD

ROOT = Path(__file__).parents[2]


def start(out: Path, *more: str) -> subprocess.Popen[str]:
    """Start a rehearsal whose processes, and all that they start, are known by their environment."""
    command = [sys.executable, "-m", "crossprobe", "rehearse", "--out", str(out), *more]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"CROSSPROBE_TEST": str(out)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def left_by(out: Path) -> set[int]:
    return processes_of(f"CROSSPROBE_TEST={out}")


@pytest.mark.federation
def test_a_rehearsal_ends_with_a_model_and_whole_ledgers_and_without_a_process(tmp_path: Path) -> None:
    out = tmp_path / "rehearsal"
    process = start(out, "--json")
    said, steps = process.communicate(timeout=400)
    assert process.returncode == 0, steps
    done = json.loads(said)
    assert RunFolder(Path(done["run"])).model.stat().st_size > 0
    assert Path(done["report"]).is_file()
    assert sorted(done["sites"]) == ["source-1-lumify-like", "target-2-telemed-like"]
    assert all(site["messages_sent"] > 4 for site in done["sites"].values())
    assert "the study runs" in steps
    assert left_by(out) == set()


@pytest.mark.federation
@pytest.mark.parametrize("sort", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda sort: sort.name)
@pytest.mark.parametrize("moment", ["coordinator-superlink.log", "kits/coordinator/runs/first/history.jsonl"])
def test_a_rehearsal_that_is_stopped_leaves_no_process(moment: str, sort: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "rehearsal"
    process = start(out)
    deadline = time.monotonic() + 200
    while not (out / moment).exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(left_by(out)) > 1
    os.killpg(process.pid, sort)
    os.killpg(process.pid, signal.SIGINT)  # an impatient second one
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert left_by(out) == set()


def test_a_rehearsal_replaces_nothing_but_a_rehearsal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "data.csv").write_text("1")
    for more in ([], ["--overwrite"]):
        assert main(["rehearse", "--out", str(mine), *more]) == 1
        assert "no rehearsal" in capsys.readouterr().err
    assert [path.name for path in mine.iterdir()] == ["data.csv"]
    (mine / RECORD).write_text("{}")
    assert main(["rehearse", "--out", str(mine)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (mine / "data.csv").exists()


def test_a_rehearsal_of_a_broken_study_says_so_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rehearse", "--out", str(tmp_path / "out"), "--study", str(tmp_path / "none.yaml")]) == 1
    assert "cannot read the study" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
