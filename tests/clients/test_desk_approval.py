"""Approving, withdrawing and beginning again at the desk: as the command does it, and only what was read."""

import html
import json
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hospital import SECRET
from visitor import FORMS, PAGES, STUDY, Answer, Visitor, approval, wait_for

import crossprobe
from clients.governance.persons import add_person
from clients.governance.state import Answered, State
from common.fingerprint import fingerprint
from common.signing import text_of


def test_an_approval_is_written_exactly_as_the_command_writes_it(browser: Visitor, tmp_path: Path) -> None:
    seen = browser.seen(PAGES[3])
    answer = browser.post(FORMS[2], name="  Anna \t Berg ", read="yes", seen=seen)
    assert (answer.status, answer.headers["Location"]) == (303, f"{PAGES[3]}?done=approved")
    State.create(tmp_path / "other", SECRET)
    words = ["site", "approve", browser.desk.studies / "study.yaml", "--site", browser.desk.folder]
    words += ["--state", tmp_path / "other", "--yes", "--by", "Anna Berg"]
    assert crossprobe.main([str(word) for word in words]) == 0
    by_desk, by_command = approval(browser), State(tmp_path / "other").approval(STUDY.hash())
    assert by_desk.stat().st_mode == by_command.stat().st_mode
    mine, other = (json.loads(path.read_bytes()) for path in (by_desk, by_command))
    assert mine.keys() == other.keys()
    assert {**mine, "when": ""} == {**other, "when": ""}
    assert "approved</b> by Anna Berg" in browser.get("/").text


def test_the_coordinators_key_is_shown_and_approved_as_by_the_command(browser: Visitor, tmp_path: Path) -> None:
    assert "Requests need no signature" in browser.get(PAGES[3]).text
    browser.desk.key = Ed25519PrivateKey.generate().public_key()
    assert html.escape(fingerprint(browser.desk.key)) in browser.get(PAGES[3]).text
    browser.post(FORMS[2], name="Anna", read="yes", seen=browser.seen(PAGES[3]))
    assert json.loads(approval(browser).read_bytes())["coordinator"] == text_of(browser.desk.key)
    known, browser.desk.key = fingerprint(browser.desk.key), None
    page = html.unescape(browser.get(PAGES[3]).text)
    assert "Requests need no signature" in page  # what would be approved now
    assert f"requests signed by {known}." in page  # and what was


def test_what_is_approved_has_to_be_what_was_read(browser: Visitor) -> None:
    seen = browser.seen(PAGES[3])
    for wrong in ({"seen": "0" * 64}, {"seen": ""}, {"read": ""}, {"name": ""}, {"name": " "}, {"name": "A" * 81},
                  {"name": "A\x1b[2J"}, {"name": "A\u202eB"}):  # fmt: skip
        answer = browser.post(FORMS[2], **({"name": "Anna", "read": "yes", "seen": seen} | wrong))
        assert answer.status == 409
        assert "Nothing was changed" in answer.text
    config = browser.desk.folder / "site.yaml"
    config.write_text(config.read_text().replace("min_update_patients: 1", "min_update_patients: 2"))
    assert browser.post(FORMS[2], name="Anna", read="yes", seen=seen).status == 409
    assert "changed since the data were checked" in browser.get("/").text
    assert browser.post("/data/check").status == 303
    wait_for(browser.desk)
    assert browser.post(FORMS[2], name="Anna", read="yes", seen=seen).status == 409  # the page was of the old policy
    assert not approval(browser).exists()
    assert browser.post(FORMS[2], name="Anna", read="yes", seen=browser.seen(PAGES[3])).status == 303
    assert approval(browser).exists()


def test_a_study_that_the_policy_forbids_has_no_form_and_cannot_be_approved(browser: Visitor) -> None:
    config = yaml.safe_load((browser.desk.folder / "site.yaml").read_text())
    config["policy"]["max_rounds"] = 2
    (browser.desk.folder / "site.yaml").write_text(yaml.safe_dump(config))
    browser.desk.check_data()
    wait_for(browser.desk)
    page = browser.get(PAGES[3]).text
    assert "expected at most 2 rounds" in page
    assert "/approve" not in page
    case = browser.desk.case(STUDY.hash())
    assert browser.post(FORMS[2], name="Anna", read="yes", seen=case.seen).status == 409
    assert not approval(browser).exists()


def test_findings_in_the_data_are_shown_and_nothing_can_be_approved(browser: Visitor) -> None:
    seen = browser.seen(PAGES[3])
    next((browser.desk.folder / "images").iterdir()).unlink()
    browser.desk.check_data()
    wait_for(browser.desk)
    assert "missing-image" in browser.get("/data").text
    assert browser.post(FORMS[2], name="Anna", read="yes", seen=seen).status == 409
    assert browser.post(FORMS[1]).status == 409
    assert not approval(browser).exists()


def test_where_two_persons_are_asked_for_one_at_the_desk_is_not_enough(browser: Visitor) -> None:
    people = {"Anna Berg": "correct horse battery", "Ben Fuchs": "grey clouds over the bay"}
    for name, passphrase in people.items():
        add_person(browser.desk.state, name, passphrase)
    config = browser.desk.folder / "site.yaml"
    config.write_text(config.read_text().replace("policy:", "policy:\n  approvals_needed: 2"))
    browser.desk.check_data()
    wait_for(browser.desk)

    def send(name: str, passphrase: str) -> Answer:
        seen = browser.seen(PAGES[3])
        return browser.post(FORMS[2], name=name, passphrase=passphrase, read="yes", seen=seen)

    assert send("Anna Berg", people["Ben Fuchs"]).status == 409
    assert not approval(browser).exists()
    assert send("Anna Berg", people["Anna Berg"]).headers["Location"].endswith("?done=half")
    assert "does not hold</b>: approved by Anna Berg" in browser.get("/").text
    assert send("Anna Berg", people["Anna Berg"]).status == 409
    assert send("Ben Fuchs", people["Ben Fuchs"]).headers["Location"].endswith("?done=approved")
    assert "approved</b> by Anna Berg and Ben Fuchs" in browser.get("/").text


def test_an_approval_is_taken_back(browser: Visitor, caplog: pytest.LogCaptureFixture) -> None:
    assert browser.post(FORMS[3], name="Anna").status == 409
    browser.post(FORMS[2], name="Anna", read="yes", seen=browser.seen(PAGES[3]))
    assert browser.post(FORMS[3], name="").status == 409
    assert approval(browser).exists()
    assert browser.post(FORMS[3], name="Ben").status == 303
    assert not approval(browser).exists()
    assert f"Ben withdrew study {STUDY.hash()}" in caplog.text


def answered(browser: Visitor, last: int) -> None:
    browser.desk.state.keep_answer(STUDY.hash(), Answered(round=last, request="r", reply=b"kept"))


def test_a_study_begins_again_as_by_the_command_and_only_where_it_was_asked_for(browser: Visitor) -> None:
    state = browser.desk.state
    assert 'name="restart"' not in browser.get(PAGES[3]).text  # nothing to begin again
    answered(browser, 2)
    form = {"name": "Anna", "read": "yes"}
    assert "up to round 3" in browser.get(PAGES[3]).text
    assert browser.post(FORMS[2], **form, seen=browser.seen(PAGES[3])).status == 303
    assert state.answered(STUDY.hash()).round == 2
    assert "starts this study again" in browser.get(PAGES[3]).text  # also while the approval holds
    for wrong in ({"read": ""}, {"seen": "0" * 64}, {"name": ""}):
        again = form | {"seen": browser.seen(PAGES[3]), "restart": "yes"} | wrong
        assert browser.post(FORMS[2], **again).status == 409
    with state.locked():  # a worker that runs
        answer = browser.post(FORMS[2], **form, seen=browser.seen(PAGES[3]), restart="yes")
        assert answer.status == 409
        assert "Stop it first" in answer.text
    assert state.answered(STUDY.hash()).round == 2
    assert browser.post(FORMS[2], **form, seen=browser.seen(PAGES[3]), restart="yes").status == 303
    assert (state.answered(STUDY.hash()).round, state.answered(STUDY.hash()).start) == (-1, 1)


def test_where_two_persons_are_asked_for_a_wrong_passphrase_begins_nothing_again(browser: Visitor) -> None:
    add_person(browser.desk.state, "Anna Berg", "correct horse battery")
    config = browser.desk.folder / "site.yaml"
    config.write_text(config.read_text().replace("policy:", "policy:\n  approvals_needed: 2"))
    browser.desk.check_data()
    wait_for(browser.desk)
    answered(browser, 2)
    form = {"name": "Anna Berg", "read": "yes", "restart": "yes", "seen": browser.seen(PAGES[3])}
    assert browser.post(FORMS[2], **form, passphrase="a guess of Eve").status == 409
    assert browser.desk.state.answered(STUDY.hash()).round == 2
    assert browser.post(FORMS[2], **form, passphrase="correct horse battery").status == 303
    assert browser.desk.state.answered(STUDY.hash()).round == -1


def test_a_damaged_record_of_rounds_is_told_and_keeps_nobody_from_withdrawing(browser: Visitor) -> None:
    browser.post(FORMS[2], name="Anna", read="yes", seen=browser.seen(PAGES[3]))
    answered(browser, 2)
    file = browser.desk.state.folder / "answered" / STUDY.hash()
    file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged. Restore it" in browser.get(PAGES[3]).text
    assert browser.post(FORMS[3], name="Anna").status == 303
    assert not approval(browser).exists()
