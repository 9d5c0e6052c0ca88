"""A flood of messages: it fills no disk, and the ledger still tells of all that left."""

from pathlib import Path

import pytest
from hospital import Hospital, Stub, hospital
from tiny import request, study

import crossprobe
from clients.data.site import Site
from clients.governance.ledger import verify
from clients.governance.rate_limit import RateLimit
from clients.node.refusals import refusal as refused
from common.messages import EnrolReply, EnrolRequest, pack, unpack

STUDY = study()
TASKS = [request(STUDY, stage, "source") for stage in ("pretrain", "adapt", "refine")]
ENROL = pack(EnrolRequest(study=STUDY.hash()))
TURNED_AWAY = pack(refused("too-many-messages"))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(north: Hospital, monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr("clients.governance.rate_limit.BYTES", 20_000)
    monkeypatch.setattr("clients.governance.rate_limit.PER_HOUR", 20_000)
    clock = Clock()
    north.worker.rate_limit = RateLimit(clock)
    return clock


@pytest.mark.parametrize("payload", [b"\xff", ENROL, TASKS[0], pack(EnrolRequest(study="0" * 64))])
def test_a_flood_fills_no_more_than_the_allowance_and_the_ledger_counts_all_that_left(
    payload: bytes, north: Hospital, stub: Stub, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = [north.worker.handle(payload) for _ in range(100)]
    assert 0 < replies.count(TURNED_AWAY) < 100
    assert north.state.ledger.stat().st_size < 40_000  # with hashes, a new task's lines, and the last message
    assert north.code(TASKS[0]) == "too-many-messages"
    clock.now = 3600
    assert north.code(TASKS[1]) == "ok"
    entries = north.ledger()
    sent = [line for line in entries if line["direction"] == "out"]
    assert len(sent) + sum(line["unwritten"] for line in entries) == len(replies) + 2
    assert [line["refusal"] for line in sent[-2:]] == ["too-many-messages", None]
    assert not verify(north.state.ledger).damage
    assert crossprobe.main(["ledger", "show", "--state", str(north.state.folder)]) == 0
    assert "refused as too-many-messages" in " ".join(capsys.readouterr().out.split())


def test_a_long_flood_adds_what_an_hour_allows_each_hour(north: Hospital, stub: Stub, clock: Clock) -> None:
    for _ in range(100):
        north.worker.handle(b"")
    before = north.state.ledger.stat().st_size
    for _ in range(2000):
        clock.now += 3.6
        north.worker.handle(b"")
    assert 30_000 < north.state.ledger.stat().st_size - before < 70_000  # two hours, with hashes
    clock.now += 3600
    assert isinstance(unpack(north.worker.handle(ENROL))[0], EnrolReply)  # its line counts those that got none
    entries = north.ledger()
    left = sum(line["direction"] == "out" for line in entries) + sum(line["unwritten"] for line in entries)
    assert left == 2101


def test_new_replies_of_tasks_take_nothing_from_the_allowance(
    tmp_path: Path, site: Site, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    north = hospital(tmp_path / "state", site, STUDY)
    monkeypatch.setattr("clients.governance.rate_limit.BYTES", 1)
    assert [north.code(payload) for payload in TASKS] == ["ok"] * 3
    assert north.code(TASKS[2]) == "ok"  # given again: the last that the allowance takes
    assert north.code(ENROL) == "too-many-messages"
    assert stub.ran == ["supervise"] * 3
