"""Every message of a hospital is in its ledger before anything leaves, whatever fails."""

import errno
import os
from pathlib import Path

import pytest
from hospital import Hospital, Stub, done
from tiny import other_tensors, refusal, request, study

from clients.governance.ledger import Ledger, LedgerError, verify
from clients.node.gatekeeper import Gatekeeper
from clients.node.refusals import refusal as refused
from common.errors import RunError
from common.messages import EnrolRequest, digest, pack, unpack

STUDY = study()
PRETRAIN, ADAPT = (request(STUDY, stage, "source") for stage in ("pretrain", "adapt"))
ENROL = pack(EnrolRequest(study=STUDY.hash()))


def test_every_message_in_and_out_is_in_the_ledger_with_the_hash_of_its_bytes(north: Hospital, stub: Stub) -> None:
    sent = [ENROL, PRETRAIN, PRETRAIN, b"\xff", other_tensors(PRETRAIN), ADAPT]
    received = [north.worker.handle(payload) for payload in sent]
    entries = north.ledger()
    assert [e["direction"] for e in entries] == ["in", "out"] * len(sent)
    assert [e["sha256"] for e in entries[::2]] == [digest(payload) for payload in sent]
    assert [e["sha256"] for e in entries[1::2]] == [digest(reply) for reply in received]
    assert [e["refusal"] for e in entries[1::2]] == [None, None, None, "not-a-message", "round-answered", None]
    assert [e["round"] for e in entries] == [None, None, 0, 0, 0, 0, None, None, 0, 0, 1, 1]
    updates = unpack(received[1])[1]
    assert entries[3]["tensors"] == {name: list(x.shape) for name, x in updates.items()}
    assert entries[3]["bytes"] == len(received[1])
    assert entries[3]["epsilon"] is None


def test_the_head_in_a_reply_is_that_of_the_line_of_its_request(north: Hospital, stub: Stub) -> None:
    heads = [done(north.answer(payload)).ledger_head for payload in (PRETRAIN, ADAPT)]
    lines = north.state.ledger.read_bytes().splitlines()
    assert heads == [digest(lines[0]), digest(lines[2])]
    assert [verify(north.state.ledger, head).proven for head in heads] == [1, 3]
    reply = refusal(north.worker.handle(PRETRAIN))
    assert reply.ledger_head == digest(north.state.ledger.read_bytes().splitlines()[4])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_at_the_ledger_lets_nothing_leave(north: Hospital, stub: Stub) -> None:
    north.state.ledger.symlink_to("/dev/full")
    for payload in (ENROL, PRETRAIN, b""):
        assert north.worker.handle(payload) == pack(refused("ledger-unwritable"))
    assert stub.ran == []
    north.state.ledger.unlink()
    assert north.code(PRETRAIN) == "ok"


def test_a_reply_that_cannot_be_logged_does_not_leave_and_is_not_trained_again(
    north: Hospital, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, written = Ledger.append, []

    def once(self: Ledger, content: dict) -> str:
        if written:
            raise LedgerError("no space")
        written.append(content)
        return append(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", once)
        assert north.code(PRETRAIN) == "ledger-unwritable"
    assert done(north.answer(PRETRAIN)).round == 0
    assert stub.ran == ["supervise"]


def test_a_ledger_write_that_fails_leaves_the_chain_whole(
    north: Hospital, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    north.worker.handle(ENROL)
    before = north.state.ledger.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        assert north.code(ENROL) == "ledger-unwritable"
    assert north.state.ledger.read_bytes() == before
    assert north.code(ENROL) == "ok"
    assert not verify(north.state.ledger).damage


def test_a_reply_that_cannot_be_kept_does_not_leave(
    north: Hospital, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RunError("no space")

    with monkeypatch.context() as patch:
        patch.setattr("clients.governance.state.write_atomically", fail)
        assert north.code(PRETRAIN) == "state-failed"
    assert north.code(PRETRAIN) == "ok"


def test_a_ledger_changed_behind_the_workers_back_stops_it(north: Hospital, stub: Stub) -> None:
    north.worker.handle(ENROL)
    north.state.ledger.write_bytes(b"")
    assert north.code(PRETRAIN) == "ledger-unwritable"


def test_a_worker_does_not_start_on_a_damaged_ledger(north: Hospital) -> None:
    north.worker.handle(ENROL)
    north.state.ledger.write_bytes(north.state.ledger.read_bytes().replace(b'"bytes":', b'"bytez":', 1))
    with pytest.raises(LedgerError, match="damaged at line 1"):
        Gatekeeper(north.site, north.state)


def test_a_line_cut_short_by_a_crash_is_dropped_at_the_start(north: Hospital, stub: Stub) -> None:
    north.worker.handle(ENROL)
    whole = north.state.ledger.read_bytes()
    north.state.ledger.write_bytes(whole + whole[:40])
    assert north.reopened().code(PRETRAIN) == "ok"
    assert north.state.ledger.read_bytes().startswith(whole)
    assert not verify(north.state.ledger).damage
