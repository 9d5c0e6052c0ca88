"""Killed in mid-round, a federation goes on and ends with the same bits. Minutes, so `make federation-test`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from federation import Federation, wait_until
from tiny import Between, Change, content, workers, write_site, write_study

from clients.ledger import read as read_ledger
from clients.refusals import refusal
from common.contract import TaskRequest, pack, unpack
from common.study import load_study
from server import history
from server.federation import NODES
from server.run import MODEL, run_study

pytestmark = pytest.mark.federation

#: Rounds of the study below: pretrain, refine, refine, score, evaluate.
WORKER_DIES_IN, SERVER_DIES_IN = 0, 2


@dataclass
class Outcome:
    """What was left of a run in which a worker, and later the ServerApp, were killed."""

    federation: Federation
    first: tuple[int, str]
    resumed: subprocess.CompletedProcess[str]
    status: str
    rounds_before: int


@pytest.fixture(scope="module")
def three(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """`pair` with a second source site, so that a round counts without it."""
    root = tmp_path_factory.mktemp("three")
    return (
        *pair,
        write_site(root / "south", "source", seed=2, patients={**{"train": 9}, "calibrate": 5, "val": 5, "test": 5}),
    )


@pytest.fixture(scope="module")
def outcome(three: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    root = tmp_path_factory.mktemp("faults")
    stages = [
        stage | {"rounds": 1 + (stage["name"] == "refine")}
        for stage in content()["stages"]
        if stage["name"] in ("pretrain", "refine")
    ]
    with Federation(root, write_study(root / "study.yaml", stages=stages), three) as federation:
        federation.start_coordinator()
        federation.register()
        federation.start_sites()
        command = [sys.executable, "-m", "crossprobe", *federation.run_command()]
        with open(root / "run.log", "wb") as log:
            running = subprocess.Popen(
                command, env=federation.console_environment(), stdout=log, stderr=subprocess.STDOUT
            )
        try:
            wait_until((federation.run_folder / NODES).exists, "all sites are enrolled", 120)
            _kill_a_worker_at_its_task(federation, "south")
            wait_until(lambda: _rounds(federation) >= SERVER_DIES_IN, "the second round", 120)
            _kill_the_serverapp_in_mid_round(federation)
            before = _rounds(federation)
            status = federation.console("study", "status", str(federation.run_folder)).stdout
            code = running.wait(180)
        finally:
            running.kill()
        resumed = federation.run("--resume")
        assert resumed.returncode == 0, f"{resumed.stdout}\n{resumed.stderr}\n{federation.logs()}"
        yield Outcome(federation, (code, (root / "run.log").read_text()), resumed, status, before)


def _rounds(federation: Federation) -> int:
    return len(history.read(federation.run_folder))


def _kill_a_worker_at_its_task(federation: Federation, name: str) -> None:
    """Stop the worker so that its task waits, kill it, and start it anew as its restart policy would."""
    worker, superexec = federation.processes[f"{name}-worker"], federation.log(name, "superexec")
    os.killpg(worker.pid, signal.SIGSTOP)
    asked = superexec.read_text().count("Start `flwr-clientapp`")
    assert _rounds(federation) == WORKER_DIES_IN
    wait_until(lambda: superexec.read_text().count("Start `flwr-clientapp`") > asked or asked > 1, "its task arrives")
    time.sleep(5)  # the ClientApp's process starts and hands the task to the socket
    federation.end(f"{name}-worker", signal.SIGKILL)
    wait_until(lambda: _rounds(federation) > WORKER_DIES_IN, "the round ends without it")
    federation.start(name, "worker")


def _kill_the_serverapp_in_mid_round(federation: Federation) -> None:
    """Kill the process that runs the ServerApp once the round's messages are out."""
    time.sleep(4)
    group = federation.processes["coordinator-serverapp"].pid
    apps = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"flwr-serverapp" in (entry / "cmdline").read_bytes():
                pid = int(entry.name)
                if os.getsid(pid) == group:
                    apps.append(pid)
        except OSError:
            continue
    assert apps
    for pid in apps:
        os.kill(pid, signal.SIGKILL)


def test_a_round_counts_without_the_site_whose_worker_was_killed(outcome: Outcome) -> None:
    records = {record.round: record for record in history.read(outcome.federation.run_folder)}
    died = records[WORKER_DIES_IN]
    assert died.counted
    assert {name: site.status for name, site in died.sites.items()} == {"north": "ok", "east": "ok", "south": "refused"}
    assert "worker-unreachable" in died.sites["south"].detail
    assert "south refused" in outcome.first[1]


def test_the_site_is_back_in_a_later_round(outcome: Outcome) -> None:
    later = [record for record in history.read(outcome.federation.run_folder) if record.round > WORKER_DIES_IN]
    assert [record.sites["south"].status for record in later if "south" in record.sites][-1] == "ok"


def test_the_exit_code_of_a_killed_serverapp_is_not_zero(outcome: Outcome) -> None:
    code, said = outcome.first
    assert code == 1
    assert "start again with --resume" in said
    assert "Traceback" not in said


def test_the_resumed_run_repeats_no_round(outcome: Outcome) -> None:
    assert outcome.rounds_before >= SERVER_DIES_IN
    rounds = [record.round for record in history.read(outcome.federation.run_folder) if record.counted]
    assert rounds == list(range(5))


def test_the_model_is_that_of_an_undisturbed_run_with_the_same_participation(
    outcome: Outcome, three: Sequence[Path], tmp_path: Path
) -> None:
    study = load_study(outcome.federation.study)
    missing = {
        (record.round, name)
        for record in history.read(outcome.federation.run_folder)
        for name, site in record.sites.items()
        if site.status != "ok"
    }
    assert {name for _, name in missing} == {"south"}

    def absent(request: bytes, reply: bytes) -> bytes:
        header, _ = unpack(request)
        assert isinstance(header, TaskRequest)
        return pack(refusal("worker-unreachable")) if (header.round, "south") in missing else reply

    change: Mapping[str, Change] = {"south": absent}
    run_study(study, Between(workers(study, three), change), tmp_path)
    assert (outcome.federation.run_folder / MODEL).read_bytes() == (tmp_path / MODEL).read_bytes()


def test_no_round_was_answered_twice(outcome: Outcome) -> None:
    for name in outcome.federation.names:
        entries = read_ledger(outcome.federation.kits / name / "state" / "ledger.jsonl")
        answers: dict[int, set[str]] = {}
        for entry in entries:
            if entry["direction"] == "out" and entry["round"] is not None and not entry["refusal"]:
                answers.setdefault(entry["round"], set()).add(entry["sha256"])
        assert {len(different) for different in answers.values()} == {1}


def test_the_status_in_mid_run_names_round_and_sites(outcome: Outcome) -> None:
    assert f"{outcome.rounds_before} of 5 rounds" in outcome.status
    assert all(name in outcome.status for name in outcome.federation.names)
