"""Heads of the ledger at a witness: each line's, before anything leaves; without it nothing does."""

import socket
from pathlib import Path

import pytest
from hospital import SECRET, Hospital, Stub
from tiny import request, study

from clients.data.site import Site
from clients.governance.approval import approve
from clients.governance.ledger import LedgerError, verify
from clients.governance.state import State
from clients.governance.witness import witness_of
from clients.node.gatekeeper import Gatekeeper
from common.messages import EnrolRequest, digest, pack

STUDY = study()
ENROL = pack(EnrolRequest(study=STUDY.hash()))
PRETRAIN = request(STUDY, "pretrain", "source")


def witnessed(folder: Path, site: Site, where: str, log: str = "") -> Hospital:
    state = State.create(folder, SECRET)
    approve(state, site, STUDY, by="anna")
    return Hospital(site, state, Gatekeeper(site, state, busy_wait_s=0.1, witness=witness_of(where, "north", log)))


def heads(north: Hospital) -> list[str]:
    return [digest(line) for line in north.state.ledger.read_bytes().splitlines()]


def test_a_file_has_the_head_of_every_line_and_finds_a_cut_of_the_last_one(
    tmp_path: Path, site: Site, stub: Stub
) -> None:
    file = tmp_path / "heads.log"
    north = witnessed(tmp_path / "state", site, str(file))
    assert [north.code(payload) for payload in (ENROL, PRETRAIN, b"no message")] == ["ok", "ok", "not-a-message"]
    lines = file.read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == heads(north)
    assert len(lines) == 6
    assert all(" crossprobe north ledger head " in line for line in lines)
    assert file.stat().st_mode & 0o777 == 0o600
    whole = north.state.ledger.read_bytes().splitlines(keepends=True)
    north.state.ledger.write_bytes(b"".join(whole[:-1]))  # what no head of the coordinator's would show
    assert verify(north.state.ledger, lines[-1].rpartition(" ")[2]).damage


def test_the_system_log_gets_the_same_lines(tmp_path: Path, site: Site, stub: Stub) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        log.settimeout(5)
        north = witnessed(tmp_path / "state", site, "syslog", str(tmp_path / "log"))
        north.code(ENROL)
        said = [log.recv(1000).decode().rstrip("\0") for _ in range(2)]
    assert [line.partition(">")[2] for line in said] == [
        f"crossprobe north ledger head {head}" for head in heads(north)
    ]


def test_nothing_leaves_that_the_witness_was_not_told(tmp_path: Path, site: Site, stub: Stub) -> None:
    file = tmp_path / "heads.log"
    north = witnessed(tmp_path / "state", site, str(file))
    file.unlink()
    file.mkdir()
    assert north.code(PRETRAIN) == "ledger-unwritable"
    assert stub.ran == []
    file.rmdir()
    file.symlink_to(tmp_path / "elsewhere")
    assert north.code(PRETRAIN) == "ledger-unwritable"
    assert not (tmp_path / "elsewhere").exists()


def test_a_system_log_that_went_away_stops_the_answers(tmp_path: Path, site: Site, stub: Stub) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        north = witnessed(tmp_path / "state", site, "syslog", str(tmp_path / "log"))
    assert north.code(PRETRAIN) == "ledger-unwritable"
    assert stub.ran == []


@pytest.mark.parametrize("where", ["syslog", "{folder}", "{folder}/none/heads.log", "{folder}/link"])
def test_a_witness_that_is_not_there_is_told_at_the_start(where: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="witness"):
        witness_of(where.format(folder=tmp_path), "north", str(tmp_path / "no-log"))
