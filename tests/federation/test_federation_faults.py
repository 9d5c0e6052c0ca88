"""Killed or frozen in mid-round, a federation goes on and ends with the same bits. Minutes: `make fault-test`."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from federation import Federation
from processes import wait_until
from tiny import content, write_site, write_study

from common.run_folder import RunFolder

pytestmark = pytest.mark.faults

#: Rounds of the study below: pretrain, refine, refine, score, evaluate.
SITES_DIE_IN, SERVER_DIES_IN = 0, 2
#: How long the slow site's worker stands still, in seconds.
FROZEN_S = 60.0
FEW = {"train": 6, "val": 5, "test": 5}


@dataclass
class Outcome:
    """What was left of a run with a bad first round, and a ServerApp killed later."""

    federation: Federation
    first: tuple[int, str]
    resumed: subprocess.CompletedProcess[str]
    status: str
    rounds_before: int


@pytest.fixture(scope="module")
def five(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """`pair` and a site for each fault, so that a round counts without them."""
    root = tmp_path_factory.mktemp("five")
    more = {"train": 9, "calibrate": 5, "val": 5, "test": 5}
    return (
        *pair,
        write_site(root / "south", "source", seed=2, patients=more),
        write_site(root / "west", "target", seed=3, gain=0.8, patients=FEW),
        write_site(root / "isle", "target", seed=4, gain=0.9, patients=FEW),
    )


@pytest.fixture(scope="module")
def outcome(five: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    root = tmp_path_factory.mktemp("faults")
    stages = [
        stage | {"rounds": 1 + (stage["name"] == "refine")}
        for stage in content()["stages"]
        if stage["name"] in ("pretrain", "refine")
    ]
    with Federation(root, write_study(root / "study.yaml", stages=stages), five) as federation:
        federation.start_coordinator()
        federation.register()
        federation.start_sites()
        with federation.running() as running:
            wait_until(RunFolder(federation.run_folder).nodes.exists, "all sites are enrolled", 120)
            _spoil_the_first_round(federation)
            wait_until(lambda: len(federation.records()) >= SERVER_DIES_IN, "the second round", 120)
            _kill_the_serverapp_in_mid_round(federation)
            before = len(federation.records())
            status = federation.console("study", "status", str(federation.run_folder)).stdout
            code = running.wait(180)
        first = (code, federation.said.read_text())
        resumed = federation.run("--resume")
        assert resumed.returncode == 0, f"{resumed.stdout}\n{resumed.stderr}\n{federation.logs()}"
        yield Outcome(federation, first, resumed, status, before)


def _spoil_the_first_round(federation: Federation) -> None:
    """All at once: kill a worker, a SuperNode and a ClientApp at their tasks, and let a fourth site stand still.

    Each worker is stopped first, so that its task waits. What was killed is started anew by its restart policy.
    """
    for name in ("south", "west", "isle", "north"):
        federation.stop_worker(name)
    federation.at_the_worker("south", "west", "isle", "north")
    frozen = time.monotonic()  # from here on the round lasts
    assert not federation.records()
    federation.end("south-worker", signal.SIGKILL)
    federation.end("west-supernode", signal.SIGKILL)
    for pid in federation.apps("isle-superexec", "flwr-clientapp"):
        os.kill(pid, signal.SIGKILL)
    for name in ("west", "isle"):
        federation.continue_worker(name)
    federation.start("south", "worker")
    federation.come_back("west")
    time.sleep(max(0.0, FROZEN_S - (time.monotonic() - frozen)))
    assert not federation.records()
    federation.continue_worker("north")
    wait_until(federation.records, "the round ends without them", 120)


def _kill_the_serverapp_in_mid_round(federation: Federation) -> None:
    """Kill the process that runs the ServerApp once the round's messages are out."""
    time.sleep(4)
    apps = federation.apps("coordinator-serverapp", "flwr-serverapp")
    assert apps
    for pid in apps:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("name", "status", "detail"),
    [
        ("south", "refused", "worker-unreachable"),
        ("west", "failed", "its SuperNode is gone"),
        ("isle", "failed", "its app's process was ended"),
    ],
    ids=["worker", "SuperNode", "ClientApp"],
)
def test_a_round_counts_without_the_site_of_a_killed_process_and_names_it(
    name: str, status: str, detail: str, outcome: Outcome
) -> None:
    spoilt = outcome.federation.records()[SITES_DIE_IN]
    assert (spoilt.round, spoilt.counted) == (SITES_DIE_IN, True)
    assert spoilt.sites[name].status == status
    assert detail in spoilt.sites[name].detail
    assert f"{name} {status}" in outcome.first[1]


@pytest.mark.parametrize("name", ["south", "west", "isle"])
def test_the_site_is_back_in_a_later_round(name: str, outcome: Outcome) -> None:
    later = [record for record in outcome.federation.records() if record.round > SITES_DIE_IN]
    assert [record.sites[name].status for record in later if name in record.sites][-1] == "ok"


def test_a_site_that_stood_still_for_a_minute_is_waited_for(outcome: Outcome) -> None:
    spoilt = outcome.federation.records()[SITES_DIE_IN]
    assert spoilt.sites["north"].status == spoilt.sites["east"].status == "ok"
    assert spoilt.sites["north"].seconds > FROZEN_S > spoilt.sites["east"].seconds


def test_the_exit_code_of_a_killed_serverapp_is_not_zero(outcome: Outcome) -> None:
    code, said = outcome.first
    assert code == 1
    assert "start again with --resume" in said
    assert "Traceback" not in said


def test_the_resumed_run_repeats_no_round(outcome: Outcome) -> None:
    assert outcome.rounds_before >= SERVER_DIES_IN
    assert [record.round for record in outcome.federation.records() if record.counted] == list(range(5))


def test_the_model_is_that_of_an_undisturbed_run_with_the_same_participation(outcome: Outcome, tmp_path: Path) -> None:
    model = RunFolder(outcome.federation.run_folder).model.read_bytes()
    assert model == outcome.federation.undisturbed(tmp_path)


def test_no_round_was_answered_twice(outcome: Outcome) -> None:
    for name in outcome.federation.names:
        answers: dict[int, set[str]] = {}
        for entry in outcome.federation.ledger(name):
            if entry["direction"] == "out" and entry["round"] is not None and not entry["refusal"]:
                answers.setdefault(entry["round"], set()).add(entry["sha256"])
        assert {len(different) for different in answers.values()} == {1}


def test_the_status_in_mid_run_names_round_and_sites(outcome: Outcome) -> None:
    assert f"{outcome.rounds_before} of 5 rounds" in outcome.status
    assert all(name in outcome.status for name in outcome.federation.names)
