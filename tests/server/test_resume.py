"""A run killed at any moment goes on from its last round and ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished import Finished
from safetensors.numpy import load, save
from tiny import Remembered, write_study

from common.errors import RunError
from common.messages import digest
from common.run_folder import RunFolder
from server import history
from server.run import run_study
from server.state import load_state, save_state
from server.transport import Failure

ROUNDS = 7


class Killed(BaseException):
    """Nothing in the code may catch this."""


class Dying(Remembered):
    """Dies in a round, after the first site's reply."""

    in_round: int | None = None
    asked = -1

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        self.asked += 1
        for reply in super().exchange(requests, task, deadline_s):
            yield reply
            if self.asked == self.in_round:
                raise Killed


def transport(finished: Finished, in_round: int | None = None) -> Dying:
    dying = Dying(finished.transport)
    dying.in_round = in_round
    return dying


def without_times(run: Path) -> list[history.RoundRecord]:
    def plain(record: history.RoundRecord) -> history.RoundRecord:
        sites = {name: replace(site, seconds=0.0) for name, site in record.sites.items()}
        return replace(record, started="", seconds=0.0, sites=sites)

    return [plain(record) for record in history.read(run)]


def ends_like_the_undisturbed_run(run: Path, finished: Finished) -> None:
    """Resume, and compare everything that a run leaves, bit by bit."""
    run_study(finished.study, transport(finished), run, resume=True)
    ended, whole = RunFolder(run), RunFolder(finished.run)
    assert ended.model.read_bytes() == whole.model.read_bytes()
    names = sorted(path.name for path in whole.checkpoint.iterdir())
    assert sorted(path.name for path in ended.checkpoint.iterdir() if not path.name.startswith(".")) == names
    for name in names:
        assert (ended.checkpoint / name).read_bytes() == (whole.checkpoint / name).read_bytes()
    assert len(ended.history.read_text().splitlines()) == ROUNDS
    assert without_times(run) == without_times(finished.run)


@pytest.mark.parametrize("index", range(ROUNDS))
def test_killed_in_the_middle_of_a_round(index: int, finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run_study(finished.study, transport(finished, index), tmp_path)
    ends_like_the_undisturbed_run(tmp_path, finished)


@pytest.mark.parametrize("index", range(ROUNDS))
def test_killed_between_history_and_checkpoint(index: int, finished: Finished, tmp_path: Path) -> None:
    def die(record: history.RoundRecord) -> None:
        if record.round == index:
            raise Killed

    with pytest.raises(Killed):
        run_study(finished.study, transport(finished), tmp_path, on_round=die)
    assert len(history.read(tmp_path)) >= index
    ends_like_the_undisturbed_run(tmp_path, finished)


#: study.yaml, then tensors and state before the first round and after each, then the model.
WRITES = 1 + 2 * (ROUNDS + 1) + 1


@pytest.mark.parametrize("write", range(1, WRITES + 1))
def test_killed_while_a_file_is_written(
    write: int, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = os.replace, []

    def dying(source: Path, target: Path) -> None:
        seen.append(target)
        if len(seen) == write:
            raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(Killed):
        run_study(finished.study, transport(finished), tmp_path)
    monkeypatch.undo()
    ends_like_the_undisturbed_run(tmp_path, finished)


def test_what_a_killed_process_left_unfinished_goes_with_the_next_checkpoint(
    finished: Finished, tmp_path: Path
) -> None:
    (tmp_path / ".round-00001.safetensors.k1ll3d.part").write_bytes(b"half of it")
    save_state(tmp_path, finished.state, finished.study.hash())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"round-{finished.state.round:05d}.safetensors",
        "state.json",
    ]


def test_killed_twice(finished: Finished, tmp_path: Path) -> None:
    for resume, in_round in ((False, 2), (True, 2)):  # the second life begins in round 2 and dies in round 4
        with pytest.raises(Killed):
            run_study(finished.study, transport(finished, in_round), tmp_path, resume=resume)
    assert len(history.read(tmp_path)) == 4
    ends_like_the_undisturbed_run(tmp_path, finished)


def test_a_last_line_of_history_cut_short_is_written_again(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run_study(finished.study, transport(finished, 2), tmp_path)
    with RunFolder(tmp_path).history.open("a") as file:
        file.write('{"round":2,"stage":"ref')
    ends_like_the_undisturbed_run(tmp_path, finished)


@pytest.mark.parametrize(
    "content", [b"{", b'{"round": 1}', b"7", b"\xff", b'{"round": 1, "sites": {"north": 3}}', b"\0"]
)
def test_a_line_of_history_that_is_no_record_is_named(content: bytes, finished: Finished, tmp_path: Path) -> None:
    whole = RunFolder(finished.run).history.read_bytes()
    first, *others = whole.splitlines(keepends=True)
    RunFolder(tmp_path).history.write_bytes(first + content + b"\n" + b"".join(others))
    with pytest.raises(RunError, match=r"history\.jsonl line 2: expected the record of a round"):
        history.read(tmp_path)
    RunFolder(tmp_path).history.write_bytes(whole + content)
    if content in (b"{", b"\xff", b"\0"):  # cut short, or never brought to the disk
        assert history.read(tmp_path) == history.read(finished.run)
    else:
        with pytest.raises(RunError, match="expected the record of a round"):
            history.read(tmp_path)


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(finished: Finished, tmp_path: Path) -> None:
    run_study(finished.study, transport(finished), tmp_path)
    ends_like_the_undisturbed_run(tmp_path, finished)


def test_a_folder_with_a_run_is_not_overwritten_by_a_new_one(finished: Finished) -> None:
    before = {path: path.read_bytes() for path in finished.run.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"already holds a run.*--resume"):
        run_study(finished.study, transport(finished), finished.run)
    assert {path: path.read_bytes() for path in finished.run.rglob("*") if path.is_file()} == before


def test_another_studys_folder_is_refused(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run_study(finished.study, transport(finished, 1), tmp_path)
    other = finished.study.model_copy(update={"seed": 1})
    with pytest.raises(RunError, match="another study"):
        run_study(other, transport(finished), tmp_path, resume=True)
    ends_like_the_undisturbed_run(tmp_path, finished)


CHILD = """
import sys
from pathlib import Path
import torch
from clients.node.simulated import open_worker
from common.study import load_study
from server.run import run_study
from simulations.local import LocalTransport

class Waiting(LocalTransport):
    def exchange(self, requests, task, deadline_s):
        for site, reply in super().exchange(requests, task, deadline_s):
            yield site, reply
            if task(site) == "self_train":
                print("mid-round", flush=True)
                sys.stdin.read()

torch.set_num_threads(1)
study, run, *folders = map(Path, sys.argv[1:])
loaded = load_study(study)
run_study(loaded, Waiting([open_worker(loaded, folder) for folder in folders]), run)
"""


def test_a_process_killed_in_mid_round_is_continued_by_another(
    finished: Finished, pair: Sequence[Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", CHILD, write_study(tmp_path / "study.yaml"), run, *pair]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert "mid-round" in child.stdout.readline()
        child.kill()
        assert child.wait() == -signal.SIGKILL
    state = load_state(RunFolder(run).checkpoint, finished.study.hash())
    assert state is not None
    assert state.round == 2
    ends_like_the_undisturbed_run(run, finished)


def spoil(file: Path, at: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    file.write_bytes(content)


@pytest.fixture
def saved(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run's checkpoint."""
    for path in RunFolder(finished.run).checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("at", [0, 0.001, 0.3, 0.7, 1])
def test_a_flipped_bit_in_the_tensors_is_named(at: float, saved: Path, finished: Finished) -> None:
    (tensors,) = saved.glob("*.safetensors")
    spoil(tensors, at)
    with pytest.raises(RunError, match=f"{tensors.name} is damaged"):
        load_state(saved, finished.study.hash())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"null", b"\xff", b"{}", b'{"version": 1}'])
def test_a_damaged_state_file_is_named(content: bytes, saved: Path, finished: Finished) -> None:
    (saved / "state.json").write_bytes(content)
    with pytest.raises(RunError, match=str(saved)):
        load_state(saved, finished.study.hash())


def edited(saved: Path, **changes: Any) -> None:
    content = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "version 1"),
        ({"study": "0" * 64}, "another study"),
        ({"tensors": "round-00099.safetensors"}, "round-00099"),
        ({"participants": {"north": {}}}, "cannot read"),
        ({"colour": "red"}, "cannot read"),
        ({"round": -1}, "state.json round: "),
        ({"released_round": 99}, "cannot be released"),
        ({"best_score": 1.5}, "state.json best_score: "),
        ({"best_val_dice": {"north": 1.5}}, "state.json best_val_dice"),
        ({"foreground_prior": 1.5}, "state.json foreground_prior: "),
        ({"foreground_prior": float("nan")}, "finite"),
        ({"bytes_to_sites": -1}, "state.json bytes_to_sites: "),
    ],
)
def test_a_state_file_that_does_not_fit_is_refused(
    changes: dict, message: str, saved: Path, finished: Finished
) -> None:
    edited(saved, **changes)
    with pytest.raises(RunError, match=message):
        load_state(saved, finished.study.hash())


def test_a_flipped_bit_anywhere_in_the_state_file_raises_nothing_but_run_errors(
    saved: Path, finished: Finished
) -> None:
    file = saved / "state.json"
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            load_state(saved, finished.study.hash())
        except RunError:
            continue


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("patients", value) for value in (-40, 0, 2.5, 10**7, "4")),
        ("role", "both"),
        ("labelled_test", 1),
    ],
)
def test_a_site_that_somebody_weighed_anew_is_refused(key: str, value: object, saved: Path, finished: Finished) -> None:
    participants = json.loads((saved / "state.json").read_text())["participants"]
    site = min(participants)
    participants[site][key] = value
    edited(saved, participants=participants)
    with pytest.raises(
        RunError, match=rf"it is damaged: state\.json participants\.{site}\.{key}: expected .*Restore it"
    ):
        load_state(saved, finished.study.hash())


def test_tensors_that_are_not_finite_are_refused_although_their_hash_is_right(saved: Path, finished: Finished) -> None:
    (file,) = saved.glob("*.safetensors")
    tensors = load(file.read_bytes())
    name = min(tensors)
    tensors[name] = np.full_like(tensors[name], np.inf)
    file.write_bytes(save(tensors))
    edited(saved, sha256=digest(file.read_bytes()))
    with pytest.raises(RunError, match="not finite"):
        load_state(saved, finished.study.hash())
