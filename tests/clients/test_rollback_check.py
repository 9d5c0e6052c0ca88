"""A state folder that knows less than its ledger: the worker does not start on it, and says what to do."""

import shutil
from pathlib import Path

import pytest
from hospital import Hospital, Stub, hospital
from private import private
from tiny import request, study

from clients.data.site import Site
from clients.governance.state import State
from common.errors import SiteStateError

STUDY = private(rounds=4)
OPEN = study()
FIRST, SECOND, THIRD = (request(STUDY, "pretrain", "source", step=step) for step in range(3))
PRETRAIN, ADAPT = (request(OPEN, stage, "source") for stage in ("pretrain", "adapt"))


def backup(north: Hospital) -> Path:
    return Path(shutil.copytree(north.state.folder, north.state.folder.with_name("backup")))


def test_a_deleted_accountant_stops_the_worker(tmp_path: Path, site: Site, stub: Stub) -> None:
    north = hospital(tmp_path / "state", site, STUDY)
    assert north.code(FIRST) == "ok"
    north.state.accountant.unlink()
    with pytest.raises(SiteStateError, match=r"knows of 0 charges, the ledger of 1: .*Restore the whole folder"):
        north.reopened()


def test_a_deleted_accountant_is_missed_for_what_it_knew_of_a_study_without_privacy(
    tmp_path: Path, site: Site, stub: Stub
) -> None:
    north = hospital(tmp_path / "state", site, OPEN, STUDY)
    assert north.code(PRETRAIN) == "ok"
    north.state.accountant.unlink()
    with pytest.raises(SiteStateError, match=r"accountant\.json knows of 0"):
        north.reopened()


def test_an_accountant_from_an_old_backup_stops_the_worker(tmp_path: Path, site: Site, stub: Stub) -> None:
    north = hospital(tmp_path / "state", site, STUDY)
    assert north.code(FIRST) == "ok"
    old = backup(north)
    assert north.code(SECOND) == "ok"
    shutil.copy(old / "accountant.json", north.state.accountant)
    with pytest.raises(SiteStateError, match="knows of 1 charges, the ledger of 2"):
        north.reopened()


@pytest.mark.parametrize("deleted", [True, False])
def test_answered_rounds_that_were_forgotten_stop_the_worker(
    deleted: bool, tmp_path: Path, site: Site, stub: Stub
) -> None:
    north = hospital(tmp_path / "state", site, OPEN)
    assert north.code(PRETRAIN) == "ok"
    old = backup(north) / "answered" / OPEN.hash()
    assert north.code(ADAPT) == "ok"
    path = north.state.folder / "answered" / OPEN.hash()
    path.unlink() if deleted else shutil.copy(old, path)
    with pytest.raises(SiteStateError, match=f"round {-1 if deleted else 0}, the ledger with round 1.*--restart"):
        north.reopened()
    State(north.state.folder).start_over(OPEN.hash())
    assert north.reopened().code(PRETRAIN) == "ok"


def test_a_study_that_started_over_is_not_mistaken_for_a_forgotten_one_but_its_loss_is_noticed(
    tmp_path: Path, site: Site, stub: Stub
) -> None:
    north = hospital(tmp_path / "state", site, OPEN)
    assert [north.code(payload) for payload in (PRETRAIN, ADAPT)] == ["ok", "ok"]
    north.state.start_over(OPEN.hash())
    north = north.reopened()
    old = backup(north) / "answered" / OPEN.hash()
    assert north.code(PRETRAIN) == "ok"
    assert north.reopened().code(PRETRAIN) == "ok"
    shutil.copy(old, north.state.folder / "answered" / OPEN.hash())
    with pytest.raises(SiteStateError, match="ends with round -1, the ledger with round 0"):
        north.reopened()


def test_a_crash_before_the_last_line_of_the_ledger_is_no_loss(tmp_path: Path, site: Site, stub: Stub) -> None:
    north = hospital(tmp_path / "state", site, STUDY)
    assert [north.code(payload) for payload in (FIRST, SECOND)] == ["ok", "ok"]
    lines = north.state.ledger.read_bytes().splitlines(keepends=True)
    north.state.ledger.write_bytes(b"".join(lines[:-1]))
    assert north.reopened().code(THIRD) == "ok"


def test_a_damaged_record_of_one_study_does_not_stop_the_others(tmp_path: Path, site: Site, stub: Stub) -> None:
    north = hospital(tmp_path / "state", site, OPEN, STUDY)
    assert north.code(PRETRAIN) == "ok"
    path = north.state.folder / "answered" / OPEN.hash()
    path.write_bytes(path.read_bytes()[:-1])
    north = north.reopened()
    assert [north.code(payload) for payload in (PRETRAIN, FIRST)] == ["state-failed", "ok"]


def test_a_whole_folder_from_an_old_backup_is_noticed_only_with_a_head(tmp_path: Path, site: Site, stub: Stub) -> None:
    north = hospital(tmp_path / "state", site, STUDY)
    assert north.code(FIRST) == "ok"
    old = backup(north)
    assert north.code(SECOND) == "ok"
    shutil.rmtree(north.state.folder)
    shutil.copytree(old, north.state.folder)
    assert north.reopened().code(SECOND) == "ok"
