"""Two persons where the policy asks for two: neither alone, neither twice, and no passphrase on the disk."""

import json
import shutil
import stat
from pathlib import Path

import pytest
from hospital import SECRET, Stub, hospital, with_policy
from tiny import request, study, write_study

import crossprobe
from clients.data.site import Site
from clients.governance.approval import approval_of, approve, valid_approvals, withdraw
from clients.governance.dry_run import dry_run
from clients.governance.persons import (
    SHORTEST,
    PersonError,
    add_person,
    approve_as,
    approve_by_policy,
    check_person,
)
from clients.governance.policy import Policy
from clients.governance.state import State
from common.errors import SiteStateError
from common.messages import EnrolRequest, pack

STUDY = study()
ANNA, BEN = "correct horse battery", "Tr\u00fcbe Aussichten heute"
ENROL = pack(EnrolRequest(study=STUDY.hash()))


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State.create(tmp_path / "state", SECRET)
    add_person(made, "Anna Berg", ANNA)
    add_person(made, "Ben Fuchs", BEN)
    return made


@pytest.fixture
def two(site: Site) -> Site:
    return with_policy(site, approvals_needed=2)


def test_an_approval_holds_only_with_the_names_of_two(tmp_path: Path, state: State, two: Site) -> None:
    other = hospital(tmp_path / "other", two)
    for name, passphrase in (("Anna Berg", ANNA), ("Ben Fuchs", BEN)):
        add_person(other.state, name, passphrase)
    assert other.code(ENROL) == "not-approved"
    first = approve_as(other.state, two, STUDY, name="Anna Berg", passphrase=ANNA)
    assert [finding.code for finding in first.void(two.config)] == ["approval-by-one"]
    assert not valid_approvals(other.state, two.config)
    assert other.code(ENROL) != "ok"
    both = approve_as(other.state, two, STUDY, name="Ben Fuchs", passphrase=BEN)
    assert (both.by, both.second, both.names) == ("Anna Berg", "Ben Fuchs", "Anna Berg and Ben Fuchs")
    assert valid_approvals(other.state, two.config).keys() == {STUDY.hash()}
    assert other.code(ENROL) == "ok"
    assert approve_as(other.state, two, STUDY, name="Anna Berg", passphrase=ANNA) == both  # and does not undo it


def test_one_person_is_not_two(state: State, two: Site) -> None:
    approve_as(state, two, STUDY, name="Anna Berg", passphrase=ANNA)
    for name in ("Anna Berg", "anna  BERG", "\uff21nna Berg"):
        with pytest.raises(PersonError, match="another person"):
            approve_as(state, two, STUDY, name=name, passphrase=ANNA)
    for name, passphrase in (("Ben Fuchs", ANNA), ("Ben Fuchs", ""), ("Carl", BEN), ("Carl", "")):
        with pytest.raises(PersonError, match="do not belong together"):
            approve_as(state, two, STUDY, name=name, passphrase=passphrase)
    with pytest.raises(PersonError, match="already"):
        add_person(state, "ANNA berg", "another long passphrase")
    approve(state, two, STUDY, by="Anna Berg", second="Anna Berg")
    assert not valid_approvals(state, two.config)
    approve(state, two, STUDY, by="Anna Berg")  # as without the policy's key
    assert not valid_approvals(state, two.config)


def test_one_of_two_alone_cannot_let_a_study_look_at_the_patients_again(tmp_path: Path, two: Site, stub: Stub) -> None:
    north = hospital(tmp_path / "north", two)
    for name, passphrase in (("Anna Berg", ANNA), ("Ben Fuchs", BEN)):
        add_person(north.state, name, passphrase)
        approve_as(north.state, two, STUDY, name=name, passphrase=passphrase)
    pretrain = request(STUDY, "pretrain", "source")
    assert north.code(pretrain) == "ok"
    alone = approve_by_policy(north.state, two, STUDY, name="Ben Fuchs", passphrase=BEN, restart=True)
    assert alone.names == "Ben Fuchs"
    assert north.reopened().code(pretrain) == "not-approved"
    with pytest.raises(PersonError, match="another person"):
        approve_by_policy(north.state, two, STUDY, name="Ben Fuchs", passphrase=BEN, restart=True)
    both = approve_by_policy(north.state, two, STUDY, name="Anna Berg", passphrase=ANNA, restart=True)
    assert both.names == "Ben Fuchs and Anna Berg"
    assert north.reopened().code(pretrain) == "ok"
    assert len(stub.ran) == 2


def test_a_first_approval_is_none_of_a_study_that_the_second_person_begins_again(
    tmp_path: Path, two: Site, stub: Stub
) -> None:
    north = hospital(tmp_path / "north", two)
    for name, passphrase in (("Anna Berg", ANNA), ("Ben Fuchs", BEN)):
        add_person(north.state, name, passphrase)
        approve_as(north.state, two, STUDY, name=name, passphrase=passphrase)
    assert north.code(request(STUDY, "pretrain", "source")) == "ok"
    withdraw(north.state, STUDY.hash(), by="Anna Berg")
    approve_by_policy(north.state, two, STUDY, name="Anna Berg", passphrase=ANNA)
    begun = approve_by_policy(north.state, two, STUDY, name="Ben Fuchs", passphrase=BEN, restart=True)
    assert begun.names == "Ben Fuchs"
    assert not valid_approvals(north.state, two.config)
    both = approve_by_policy(north.state, two, STUDY, name="Anna Berg", passphrase=ANNA)
    assert both.names == "Ben Fuchs and Anna Berg"


def test_a_first_approval_of_another_policy_does_not_count(state: State, site: Site, two: Site) -> None:
    approve_as(state, two, STUDY, name="Anna Berg", passphrase=ANNA)
    changed = with_policy(site, approvals_needed=2, max_rounds=200)
    approval = approve_as(state, changed, STUDY, name="Ben Fuchs", passphrase=BEN)
    assert (approval.by, approval.second) == ("Ben Fuchs", "")
    assert not valid_approvals(state, changed.config)


def test_two_persons_approve_the_same_key_of_the_coordinator(state: State, two: Site) -> None:
    approve_as(state, two, STUDY, name="Anna Berg", passphrase=ANNA, coordinator="one")
    approval = approve_as(state, two, STUDY, name="Ben Fuchs", passphrase=BEN, coordinator="other")
    assert (approval.by, approval.second, approval.coordinator) == ("Ben Fuchs", "", "other")
    assert not valid_approvals(state, two.config)
    both = approve_as(state, two, STUDY, name="Anna Berg", passphrase=ANNA, coordinator="other")
    assert (both.names, both.coordinator) == ("Ben Fuchs and Anna Berg", "other")


def test_the_disk_has_no_passphrase_and_a_person_is_known_in_whatever_form_it_is_typed(state: State) -> None:
    content = state.persons.read_text(encoding="utf-8")
    assert ANNA not in content
    assert BEN not in content
    assert stat.S_IMODE(state.persons.stat().st_mode) == 0o600
    entries = json.loads(content)["persons"]
    assert len({entry["salt"] for entry in entries.values()}) == 2
    assert check_person(state, "ben fuchs", BEN.replace("\u00fc", "u\u0308")) == "Ben Fuchs"


@pytest.mark.parametrize(("name", "passphrase"), [("", ANNA), ("A" * 81, ANNA), ("A\x1b[1m", ANNA), ("C", "short"),
                                                  ("C", "x" * (SHORTEST - 1))])  # fmt: skip
def test_a_name_or_passphrase_without_sense_is_refused(state: State, name: str, passphrase: str) -> None:
    before = state.persons.read_bytes()
    with pytest.raises(PersonError):
        add_person(state, name, passphrase)
    assert state.persons.read_bytes() == before


def test_a_damaged_file_of_persons_lets_nobody_approve(state: State, two: Site) -> None:
    for content in (b"", b"{}", b'{"version": 2, "persons": {}}', b'{"version": 1, "persons": {"Anna Berg": {}}}'):
        state.persons.write_bytes(content)
        with pytest.raises(SiteStateError, match="damaged"):
            approve_as(state, two, STUDY, name="Anna Berg", passphrase=ANNA)
    assert approval_of(state, STUDY.hash()) is None


def test_the_key_changes_no_hash_of_a_policy_without_it() -> None:
    assert "approvals_needed" not in Policy().model_dump()
    assert Policy(approvals_needed=2).hash() != Policy().hash() == Policy(approvals_needed=1).hash()


def test_a_dry_run_needs_nobody(tmp_path: Path, state: State, two: Site) -> None:
    sent = dry_run(STUDY, two, state, tmp_path / "out")
    assert {message.answer for message in sent} == {"ok"}
    assert approval_of(state, STUDY.hash()) is None


def test_the_commands_ask_for_each_passphrase(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed: list[str] = []
    monkeypatch.setattr("click.termui.hidden_prompt_func", lambda prompt: typed.pop(0))
    folder = Path(shutil.copytree(pair[0], tmp_path / "site"))
    config = folder / "site.yaml"
    config.write_text(config.read_text().replace("policy:", "policy:\n  approvals_needed: 2"))
    State.create(tmp_path / "state")
    state = ["--state", str(tmp_path / "state")]
    for name, passphrase in (("Anna Berg", ANNA), ("Ben Fuchs", BEN)):
        typed += [passphrase, passphrase]
        assert crossprobe.main(["site", "person", "add", name, *state]) == 0
    approving = ["site", "approve", str(write_study(tmp_path / "study.yaml")), "--site", str(folder), *state, "--yes"]
    capsys.readouterr()
    typed.append(ANNA)
    assert crossprobe.main([*approving, "--by", "Anna Berg"]) == 0
    assert "It does not hold yet: expected the approval of two persons" in capsys.readouterr().out
    typed.append(ANNA)
    assert crossprobe.main([*approving, "--by", "Ben Fuchs"]) == 1
    assert "do not belong together" in capsys.readouterr().err
    typed.append(BEN)
    assert crossprobe.main([*approving, "--by", "Ben Fuchs", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["approved"], told["by"]) == (True, "Anna Berg and Ben Fuchs")
