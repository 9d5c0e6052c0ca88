"""A role, the SuperLink and the disk go away and come back to the same bits. Minutes, so `make fault-test`."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from disks import MOUNTS, read_only, small_disk
from federation import Federation
from processes import wait_until
from tiny import content, write_study

from common.run_folder import RunFolder
from common.study import load_study
from server import pause
from server.pause import Pause
from server.state import load_state
from simulations.processes import listens

pytestmark = pytest.mark.faults

#: Rounds of the study below: pretrain, refine, refine, refine, score, evaluate.
ROLE_GOES_IN, LINK_DIES_IN, READ_ONLY_AFTER, ROUNDS = 0, 1, 2, 6
DEADLINE_S = 40.0
needs_a_disk = pytest.mark.skipif(not MOUNTS, reason="needs root to mount a file system")


@dataclass
class Outcome:
    """What was left of a run that lost one thing after the other.

    Attributes:
        paused: what the run's folder and `study status` said once only `east` was missing.
        ended: exit code and words of `study run`, which outlived the SuperLink and then met a read-only disk.
        refused: what `report` and `run --resume` did on that disk, and the round that the checkpoint held.
    """

    federation: Federation
    paused: tuple[Pause, str]
    ended: tuple[int, str]
    refused: tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str], int]
    resumed: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def outcome(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    root = tmp_path_factory.mktemp("outages")
    stages = [
        stage | {"rounds": 1 + 2 * (stage["name"] == "refine")}
        for stage in content()["stages"]
        if stage["name"] in ("pretrain", "refine")
    ]
    study = write_study(root / "study.yaml", stages=stages, participation={"deadline_s": DEADLINE_S})
    with Federation(root, study, pair) as federation, contextlib.ExitStack() as disks:
        if MOUNTS:
            disks.enter_context(small_disk(federation.run_folder.parent, 16))
        federation.start_coordinator()
        federation.register()
        federation.start_sites()
        with federation.running() as running:
            wait_until(RunFolder(federation.run_folder).nodes.exists, "all sites are enrolled", 120)
            paused = _lose_a_role(federation)
            _kill_the_superlink_in_mid_round(federation)
            wait_until(lambda: _rounds(federation) > READ_ONLY_AFTER or running.poll() is not None, "more rounds", 240)
            assert running.poll() is None, f"{federation.said.read_text()}\n{federation.logs()}"
            with read_only(federation.run_folder.parent) if MOUNTS else contextlib.nullcontext():
                ended = (running.wait(180), federation.said.read_text())
                report = federation.console("report", str(federation.run_folder))
                again = federation.run("--resume")
                state = load_state(RunFolder(federation.run_folder).checkpoint, load_study(study).hash())
                assert state is not None
        resumed = federation.run("--resume")
        yield Outcome(federation, paused, ended, (report, again, state.round), resumed)


def _rounds(federation: Federation) -> int:
    return sum(record.counted for record in federation.records())


def _lose_a_role(federation: Federation) -> tuple[Pause, str]:
    """Kill the SuperNode of the only target and let the only source be late; return what is said meanwhile."""
    for name in federation.names:
        federation.stop_worker(name)
    federation.at_the_worker(*federation.names)
    federation.end("east-supernode", signal.SIGKILL)
    federation.continue_worker("east")
    wait_until(federation.records, "the round falls short", 2 * DEADLINE_S)
    federation.continue_worker("north")
    wait_until(
        lambda: (p := pause.read(federation.run_folder)) and p.lacking.keys() == {"target"}, "north is back", 120
    )
    seen, status = pause.read(federation.run_folder), federation.console("study", "status", str(federation.run_folder))
    assert seen is not None
    federation.come_back("east")
    wait_until(lambda: _rounds(federation) > ROLE_GOES_IN, "the run goes on", 4 * DEADLINE_S)
    return seen, status.stdout


def _kill_the_superlink_in_mid_round(federation: Federation) -> None:
    """Kill it while a task waits at a worker, and start it anew on its database as its restart policy would."""
    federation.stop_worker("north")
    federation.at_the_worker("north")
    federation.end("coordinator-superlink", signal.SIGKILL)
    federation.continue_worker("north")
    assert not listens(federation.ports["superlink"])
    time.sleep(5)
    assert _rounds(federation) == LINK_DIES_IN
    federation.start("coordinator", "superlink")


def test_a_site_that_answers_after_the_deadline_is_late(outcome: Outcome) -> None:
    short = outcome.federation.records()[0]
    assert (short.round, short.counted) == (ROLE_GOES_IN, False)
    assert short.sites["north"].status == "late"
    assert short.sites["north"].seconds == pytest.approx(DEADLINE_S, abs=5)


def test_a_run_that_lacks_a_role_pauses_and_says_which(outcome: Outcome) -> None:
    seen, status = outcome.paused
    assert (seen.round, seen.lacking, seen.sites.keys()) == (ROLE_GOES_IN, {"target": [0, 1]}, {"east"})
    said = " ".join(status.split())
    assert f"paused since {seen.since}: round 0 (pretrain) needs 1 target site(s) and has 0: east" in said


def test_it_goes_on_by_itself_when_the_site_is_back(outcome: Outcome) -> None:
    first = next(record for record in outcome.federation.records() if record.counted)
    assert first.round == ROLE_GOES_IN
    assert {name: site.status for name, site in first.sites.items()} == {"north": "ok", "east": "ok"}
    assert not RunFolder(outcome.federation.run_folder).paused.exists()


def test_a_run_outlives_its_superlink(outcome: Outcome) -> None:
    rounds = [record.round for record in outcome.federation.records() if record.counted]
    assert rounds == list(range(ROUNDS))
    assert all(f"round {index} " in outcome.ended[1] for index in range(LINK_DIES_IN, READ_ONLY_AFTER + 1))


@needs_a_disk
def test_a_disk_that_became_read_only_ends_the_run_with_a_remedy(outcome: Outcome) -> None:
    code, said = outcome.ended
    assert code == 1
    assert "Read-only file system" in said
    assert "--resume" in said
    assert "Traceback" not in said


@needs_a_disk
def test_what_was_saved_before_is_intact(outcome: Outcome) -> None:
    assert outcome.refused[2] > READ_ONLY_AFTER


@needs_a_disk
def test_nothing_is_started_on_a_read_only_disk(outcome: Outcome) -> None:
    for done in outcome.refused[:2]:
        assert done.returncode == 1, done.args
        assert "Read-only file system" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_resumed_run_ends_with_the_bits_of_an_undisturbed_one(outcome: Outcome, tmp_path: Path) -> None:
    assert outcome.resumed.returncode == 0, outcome.resumed.stderr
    model = RunFolder(outcome.federation.run_folder).model.read_bytes()
    assert model == outcome.federation.undisturbed(tmp_path)
    assert all(
        site.status == "ok" for record in outcome.federation.records()[-ROUNDS:] for site in record.sites.values()
    )
