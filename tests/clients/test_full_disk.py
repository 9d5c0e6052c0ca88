"""A disk that is full or read-only stops a run with a remedy, and leaves the last checkpoint as it was."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from disks import MOUNTS, fill_up, full, read_only, remount, small_disk
from finished import Finished
from recordings import dicom, frame
from tiny import Remembered, write_study

from common.errors import RunError
from common.run_folder import RunFolder
from crossprobe import main
from server import history
from server.federation import deployment
from server.history import RoundRecord
from server.run import run_study
from server.state import load_state, write_atomically

FULL = Path("/dev/full")
STOPPED_AFTER = 1


def run_into(
    finished: Finished, run: Path, on_round: Callable[[RoundRecord], None] = lambda record: None, resume: bool = False
) -> None:
    run_study(finished.study, Remembered(finished.transport), run, resume=resume, on_round=on_round)


def goes_on(finished: Finished, run: Path, rounds: int) -> None:
    state = load_state(RunFolder(run).checkpoint, finished.study.hash())
    assert state is not None
    assert state.round == rounds
    run_into(finished, run, resume=True)
    assert RunFolder(run).model.read_bytes() == RunFolder(finished.run).model.read_bytes()
    assert len(history.read(run)) == len(history.read(finished.run))


@pytest.mark.parametrize("name", ["round-00002.safetensors", "state.json"])
def test_a_disk_full_at_the_checkpoint(
    name: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.startswith(f".{name}."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(descriptor)

    def fill(record: RoundRecord) -> None:
        if record.round == STOPPED_AFTER:
            monkeypatch.setattr(os, "fsync", fsync)

    with pytest.raises(RunError, match=f"cannot write .*{name}: No space left.*free some space.*--resume"):
        run_into(finished, tmp_path, fill)
    monkeypatch.undo()
    goes_on(finished, tmp_path, STOPPED_AFTER)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_disk_full_at_the_history(finished: Finished, tmp_path: Path) -> None:
    kept, lines = tmp_path / "kept", RunFolder(tmp_path).history

    def fill(record: RoundRecord) -> None:
        if record.round == STOPPED_AFTER - 1:
            lines.rename(kept)
            lines.symlink_to(FULL)

    with pytest.raises(RunError, match=r"cannot write .*history\.jsonl: No space left.*--resume"):
        run_into(finished, tmp_path, fill)
    kept.rename(lines)
    goes_on(finished, tmp_path, STOPPED_AFTER)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_write_that_fails_leaves_the_old_file_and_no_half_one(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    file = tmp_path / "state.json"
    write_atomically(file, b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(RunError, match=f"state.json: {os.strerror(code)}.*then try again"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_place_that_is_no_folder_is_named(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for run in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match=f"cannot write to {run}"):
            run_into(finished, run)


def test_a_file_in_the_checkpoints_place_is_named(finished: Finished, tmp_path: Path) -> None:
    RunFolder(tmp_path).checkpoint.write_text("")
    with pytest.raises(RunError, match="checkpoint"):
        run_into(finished, tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own; only root may mount one."""
    if not MOUNTS:
        pytest.skip("may not mount a file system here")
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder, 4):
        yield folder


def test_a_disk_that_becomes_read_only(finished: Finished, disk: Path) -> None:
    def protect(record: RoundRecord) -> None:
        if record.round == STOPPED_AFTER:
            remount(disk, "ro")

    with pytest.raises(RunError, match=r"Read-only.*--resume"):
        run_into(finished, disk / "run", protect)
    remount(disk, "rw")
    goes_on(finished, disk / "run", STOPPED_AFTER)


def test_a_disk_that_fills_up(finished: Finished, disk: Path) -> None:
    filler = disk / "filler"

    def fill(record: RoundRecord) -> None:
        if record.round == STOPPED_AFTER:
            fill_up(filler)

    with pytest.raises(RunError, match=r"No space left.*--resume"):
        run_into(finished, disk / "run", fill)
    filler.unlink()
    goes_on(finished, disk / "run", STOPPED_AFTER)


def test_no_run_is_submitted_that_could_not_be_written(finished: Finished, disk: Path) -> None:
    submitted: list[object] = []
    cli: Any = SimpleNamespace(address="localhost:1", ca=None, submit=lambda config: submitted.append(config) or "1")
    study = write_study(disk.parent / "study.yaml")
    for what, ready, undo in (
        ("Read-only", lambda: remount(disk, "ro"), lambda: remount(disk, "rw")),
        ("No space left", lambda: fill_up(disk / "filler"), (disk / "filler").unlink),
    ):
        ready()
        with pytest.raises(RunError, match=what):
            deployment.start(cli, study, disk / "run")
        undo()
        assert not submitted
    assert deployment.start(cli, study, disk / "run") == "1"
    assert not RunFolder(disk / "run").room.exists()


def test_no_run_is_written_into_a_folder_of_something_else(tmp_path: Path) -> None:
    submitted: list[object] = []
    cli: Any = SimpleNamespace(address="localhost:1", ca=None, submit=lambda config: submitted.append(config) or "1")
    study, kits = write_study(tmp_path / "study.yaml"), tmp_path / "kits"
    (kits / "ca").mkdir(parents=True)
    for resume in (False, True):
        with pytest.raises(RunError, match=r"found ca\. Give the run a folder of its own"):
            deployment.start(cli, study, kits, resume=resume)
    assert [path.name for path in kits.iterdir()] == ["ca"]
    assert not submitted
    assert deployment.start(cli, study, kits / "first") == "1"
    assert deployment.start(cli, study, kits / "first") == "1"  # again, after its first attempt


@pytest.mark.parametrize("how", ["full", "read-only"])
@pytest.mark.parametrize("command", ["site new {images} {out} --role target", "phantom {out} --source lumify_like"])
def test_a_folder_that_cannot_be_written_is_refused_in_words_and_leaves_nothing(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, how: str
) -> None:
    (tmp_path / "images").mkdir()
    dicom(tmp_path / "images/scan.dcm", np.stack([frame(0, 240, 320)] * 2), PatientID="x")
    with full(disk) if how == "full" else read_only(disk):
        before = sorted(disk.iterdir())
        words = command.format(images=tmp_path / "images", out=disk / "new").split()

        assert main([*words, *(["--key", str(tmp_path / "key")] if words[0] == "site" else [])]) == 1

        shown = capsys.readouterr().err
        assert f"cannot write {disk / 'new'}" in shown
        assert {"full": "No space left", "read-only": "Read-only file system"}[how] in shown
        assert "Traceback" not in shown
        assert [path for path in sorted(disk.iterdir()) if any(path.rglob("*"))] == []
        assert len(before) == (how == "full")


def test_the_pictures_of_an_intake_that_cannot_be_written_are_named(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    dicom(tmp_path / "images/scan.dcm", np.stack([frame(0, 240, 320)] * 2), PatientID="x")
    with read_only(disk):
        words = ["site", "new", str(tmp_path / "images"), str(tmp_path / "new"), "--role", "target", "--keep-outside"]
        assert main([*words, "--sheet", str(disk / "sheet.png")]) == 1
    assert f"cannot write {disk / 'sheet.png'}: Read-only file system" in capsys.readouterr().err


def test_whatever_else_a_disk_refuses_is_no_traceback(
    disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unforeseen(*arguments: object, **more: object) -> None:
        (disk / "made").write_bytes(b"x")

    monkeypatch.setattr("clients.governance.state.State.create", unforeseen)
    with read_only(disk):
        assert main(["site", "init", "--state", str(disk / "state")]) == 1
    shown = capsys.readouterr().err
    assert f"{disk / 'made'}: Read-only file system. Make room there" in shown
    assert "Traceback" not in shown
