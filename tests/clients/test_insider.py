"""Somebody at the hospital with the state folder open: a changed accountant, a cut ledger, a clock set back."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hospital import Hospital, Stub, hospital, with_policy
from private import private
from tiny import request, study

import clients.governance.ledger as ledger_module
from clients.data.site import Site
from clients.governance.accountant import Accountant, Charge, epsilon_of
from clients.governance.ledger import LedgerError, verify
from common.errors import SiteStateError
from common.messages import EnrolRequest, pack
from crossprobe import main

STUDY = private(rounds=4)
OPEN = study()
FIRST, SECOND, THIRD = (request(STUDY, "pretrain", "source", step=step) for step in range(3))
ENROL = pack(EnrolRequest(study=STUDY.hash()))
EXPIRES = date(2030, 6, 1)


class Clock(datetime):
    """The site's clock, as somebody sets it."""

    at = datetime(2030, 5, 31, 12, tzinfo=UTC)

    @classmethod
    def now(cls, tz: Any = None) -> "Clock":
        return cls.at  # type: ignore[return-value]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(ledger_module, "datetime", Clock)
    monkeypatch.setattr(Clock, "at", datetime(2030, 5, 31, 12, tzinfo=UTC))
    return Clock


@pytest.fixture
def north(tmp_path: Path, site: Site, stub: Stub) -> Hospital:
    own = hospital(tmp_path / "state", site, STUDY, OPEN)
    assert [own.code(payload) for payload in (FIRST, SECOND)] == ["ok", "ok"]
    return own


def edited(north: Hospital, **changes: Any) -> None:
    """Change every charge of the accountant's file, and not their number."""
    content = json.loads(north.state.accountant.read_bytes())
    content["charges"] = [charge | changes for charge in content["charges"]]
    north.state.accountant.write_text(json.dumps(content, indent=1))


@pytest.mark.parametrize("changes", [{"noise_multiplier": 1000.0}, {"sample_rate": 1e-6}, {"steps": 1}, {"round": 9}])
def test_an_accountant_that_was_changed_at_the_same_number_of_charges_stops_the_worker(
    changes: dict[str, Any], north: Hospital
) -> None:
    edited(north, **changes)
    with pytest.raises(SiteStateError, match="not the file that the ledger's last line was written beside"):
        north.reopened()


def test_one_patients_charge_cannot_be_put_in_the_place_of_another(north: Hospital) -> None:
    content = json.loads(north.state.accountant.read_bytes())
    content["charges"].reverse()
    north.state.accountant.write_text(json.dumps(content, indent=1))
    with pytest.raises(SiteStateError, match="changed by hand"):
        north.reopened()


def test_every_line_is_bound_to_the_accountant_as_it_was_then(north: Hospital) -> None:
    north.code(ENROL)
    lines = north.ledger()
    assert [line["accountant"] is None for line in lines] == [True] + [False] * (len(lines) - 1)
    assert lines[-1]["accountant"] == lines[-2]["accountant"] == Accountant(north.state.accountant).sha256
    assert len({line["accountant"] for line in lines}) == 3


@pytest.mark.parametrize("payload", [THIRD, request(OPEN, "pretrain", "source")], ids=["charge", "unbounded"])
def test_a_crash_between_accountant_and_ledger_is_no_edit(payload: bytes, north: Hospital) -> None:
    before = north.state.ledger.read_bytes()
    assert north.code(payload) == "ok"
    lines = north.state.ledger.read_bytes().removeprefix(before).splitlines(keepends=True)
    north.state.ledger.write_bytes(before + lines[0])
    (north.state.folder / "answered" / OPEN.hash()).unlink(missing_ok=True)
    assert north.reopened().code(ENROL) == "ok"


@pytest.mark.parametrize("delete", [True, False])
def test_an_empty_ledger_beside_an_accountant_stops_the_worker_until_the_ledger_is_renewed(
    delete: bool, north: Hospital, capsys: pytest.CaptureFixture[str]
) -> None:
    north.state.ledger.unlink() if delete else north.state.ledger.write_bytes(b"")
    with pytest.raises(SiteStateError, match=r"no ledger of what they were for.*crossprobe ledger renew"):
        north.reopened()
    assert main(["ledger", "renew", "--state", str(north.state.folder)]) == 0
    assert "heads from before are not in the new one" in capsys.readouterr().out
    north = north.reopened()
    assert north.code(ENROL) == "ok"
    assert north.ledger()[0]["kind"] == "renewed"
    assert main(["ledger", "show", "--state", str(north.state.folder)]) == 0


def test_a_renewed_ledger_forgets_nothing_that_was_spent_and_keeps_the_old_file(north: Hospital) -> None:
    old, spent = north.state.ledger.read_bytes(), north.state.accountant.read_bytes()
    assert main(["ledger", "renew", "--state", str(north.state.folder)]) == 0
    (aside,) = north.state.folder.glob("ledger-until-*.jsonl")
    assert (aside.read_bytes(), north.state.accountant.read_bytes()) == (old, spent)
    edited(north, noise_multiplier=1000.0)
    with pytest.raises(SiteStateError, match="changed by hand"):
        north.reopened()


def test_an_epsilon_below_zero_is_an_error_and_no_discount() -> None:
    nothing = Charge("a", "0" * 64, 0, sample_rate=1.0, noise_multiplier=1000.0, steps=1)
    assert epsilon_of([nothing], 1e-5) > 0
    with pytest.raises(SiteStateError, match=r"an epsilon of -0\.0005 at delta 0\.001 cannot be"):
        epsilon_of([nothing], 1e-3)


def test_an_expired_policy_stays_expired_when_the_clock_is_set_back(
    tmp_path: Path, site: Site, stub: Stub, clock: type[Clock]
) -> None:
    north = hospital(tmp_path / "state", with_policy(site, expires=EXPIRES), STUDY)
    assert north.code(ENROL) == "ok"
    clock.at += timedelta(days=2)
    assert north.code(ENROL) == "policy-expired"
    clock.at -= timedelta(days=2)
    assert north.code(FIRST) == "ledger-unwritable"
    assert north.reopened().code(FIRST) == "ledger-unwritable"
    assert stub.ran == []


def test_a_clock_that_the_network_sets_back_a_little_over_midnight_brings_no_day_back(
    tmp_path: Path, site: Site, stub: Stub, clock: type[Clock]
) -> None:
    north = hospital(tmp_path / "state", with_policy(site, expires=EXPIRES), STUDY)
    clock.at = datetime(2030, 6, 2, 0, 0, 1, tzinfo=UTC)
    assert north.code(ENROL) == "policy-expired"
    clock.at -= timedelta(seconds=30)
    assert north.code(ENROL) == "policy-expired"
    assert north.reopened().code(ENROL) == "policy-expired"


def test_a_ledger_whose_time_runs_backwards_is_damaged(
    tmp_path: Path, site: Site, stub: Stub, clock: type[Clock]
) -> None:
    north = hospital(tmp_path / "state", site, STUDY)
    north.code(ENROL)
    clock.at -= timedelta(days=1)
    north.worker.ledger._latest = None  # an insider's own program, which asks nobody for the time
    north.code(ENROL)
    (damage,) = {found.message for found in verify(north.state.ledger).damage}
    assert "its time is before that of a line before it, 2030-05-31 12:00 UTC" in damage
    with pytest.raises(LedgerError, match="its time is before"):
        north.reopened()
