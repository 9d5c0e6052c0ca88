"""A small sample of the bad inputs, and that each kind of fault would be seen."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simulations.fuzz import __main__ as command
from simulations.fuzz import bombs, damage, watch
from simulations.fuzz.cases import Case


def test_a_sample_of_bad_inputs_ends_with_clean_results_or_clear_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz"])

    command.main(seed=1, cases=25, first=1000, out=tmp_path / "fuzz.json")

    found = json.loads((tmp_path / "fuzz.json").read_text())
    assert found["faults"] == []
    assert sum(found["ended"].values()) == 25
    assert "25 bad inputs" in (tmp_path / "fuzz.md").read_text()
    assert {kind.partition(":")[0] for kind in found["ended"]} >= {"new", "check", "predict"}


def test_the_same_seed_and_number_give_the_same_bad_input() -> None:
    one, other = (list(watch.run_cases(3, range(1000, 1006))) for _ in range(2))
    assert [(own.what, own.code) for own in one] == [(own.what, own.code) for own in other]
    assert len({own.what for own in one}) > 1


def test_every_bomb_is_put_into_every_command_before_chance_decides() -> None:
    small = list(damage.BOMBS).index("nothing") * len(bombs.COMMANDS)

    ended = list(watch.run_cases(0, [small, small + 1, small + 2]))

    assert [own.what for own in ended] == ["new: nothing", "check: nothing", "predict: nothing"]
    assert [(own.code, own.faults) for own in ended] == [(1, ())] * 3


def prints(text: str) -> int:
    print(text)
    return 1


def writes(path: str) -> int:
    Path(path).write_text("left behind")
    return 0


def fails() -> int:
    raise KeyError("traceback")


def sleeps() -> int:
    time.sleep(60)
    return 0


def works() -> int:
    end = time.process_time() + 1.0
    while time.process_time() < end:
        pass
    return 0


def spins() -> int:
    while True:
        pass


def dies() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def hoards() -> int:
    return len(bytearray(1200 << 20)) and 0


FAULTS: list[tuple[Callable[[], int], str]] = [
    (fails, "KeyError: 'traceback' (test_fuzz.py"),
    (sleeps, "no end after"),
    (spins, "no end after"),
    (works, "1 s"),
    (dies, "the process died"),
    (hoards, "MiB"),
    (lambda: 1, "without a word"),
    (lambda: 7, "exit code 7"),
    (lambda: prints("\x1b[2J"), "control characters"),
    (lambda: prints("Traceback (most recent call last):\n  x\nValueError: y"), "a traceback was shown: ValueError: y"),
    (lambda: prints("a.py:1: UserWarning: odd"), "a warning of a library"),
    (lambda: writes("../elsewhere.txt"), "files outside of the output: elsewhere.txt"),
    (lambda: writes("../in/scan.png"), "files outside of the output: in/scan.png"),
    (lambda: writes(str(Path(os.environ["TMPDIR"]) / "x")), "files outside of the output: tmp/x"),
    (lambda: os.symlink("/etc", "../out") or 0, "links in the output: out"),
]


@pytest.mark.parametrize(("run", "fault"), FAULTS, ids=[f"{run.__name__} {fault}" for run, fault in FAULTS])
def test_every_kind_of_fault_is_seen(monkeypatch: pytest.MonkeyPatch, run: Callable[[], int], fault: str) -> None:
    monkeypatch.setattr(watch, "warm", lambda: None)
    monkeypatch.setattr(watch, "STUCK_S", 2.0 if run in (sleeps, spins) else 60.0)
    monkeypatch.setattr(watch, "MOST_S", 0.5)
    monkeypatch.setattr(watch, "case", lambda rng, folder: (folder / "in").mkdir() or Case("x", run))

    (ended,) = watch.run_cases(0, [1000])

    assert any(fault in own for own in ended.faults), ended
    monkeypatch.setattr(watch, "case", lambda rng, folder: Case("x", lambda: prints("not found") and writes("../out")))
    (clean,) = watch.run_cases(0, [1000])
    assert clean.faults == ()


def test_a_case_that_is_slow_for_want_of_a_processor_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "warm", lambda: None)
    monkeypatch.setattr(watch, "STUCK_S", 0.5)  # less than it takes, however idle the machine is
    monkeypatch.setattr(watch, "case", lambda rng, folder: Case("x", works))

    (ended,) = watch.run_cases(0, [1000])

    assert ended.faults == ()
    assert ended.seconds >= 1.0


def test_the_cases_after_one_that_dies_are_run_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([lambda: 0, dies])
    monkeypatch.setattr(watch, "warm", lambda: None)
    monkeypatch.setattr(watch, "case", lambda rng, folder: Case("x", next(runs)))

    ended = list(watch.run_cases(0, [1004, 1005, 1006]))

    assert [own.number for own in ended] == [1004, 1005, 1006]
    assert [bool(own.faults) for own in ended] == [False, True, False]
