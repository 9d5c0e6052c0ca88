"""The hospital's desk: who may ask, what a page shows and what it does, attacked as another page or user would."""

import html
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hospital import SECRET
from tiny import content, study, write_site, write_study
from visitor import HOST, Answer, Visitor, wait_for

import crossprobe
from clients.data.site import load_site
from clients.desk import desk as desks
from clients.desk.desk import Desk
from clients.desk.gate import FIELD, HEADERS, MOST_BYTES, Gate
from clients.desk.server import serving
from clients.governance.approval import approve
from clients.governance.ledger import Ledger, entry
from clients.governance.persons import add_person
from clients.governance.state import Answered, State
from common.fingerprint import fingerprint
from common.messages import EnrolRequest, Message
from common.signing import text_of
from common.study import load_study

STUDY = study()
PAGES = ("/", "/data", "/ledger", f"/study/{STUDY.hash()}", "/predictions")
WAYS: tuple[Literal["in", "out"], ...] = ("in", "out")
FORMS = ("/data/check", *(f"/study/{STUDY.hash()}/{word}" for word in ("try", "approve", "withdraw")))


@pytest.fixture
def folder(tmp_path: Path, pair: Sequence[Path]) -> Path:
    """A site's folder that a test may change."""
    return Path(shutil.copytree(pair[0], tmp_path / "north"))


@pytest.fixture
def browser(tmp_path: Path, folder: Path) -> Iterator[Visitor]:
    """A browser that was let in, at a desk whose data were checked."""
    studies = tmp_path / "studies"
    studies.mkdir()
    write_study(studies / "study.yaml")
    desk, gate = Desk(folder, State.create(tmp_path / "state", SECRET), studies), Gate()
    desk.check_data()
    wait_for(desk)
    with serving(desk, gate, tmp_path / "d.sock"):
        yield Visitor(tmp_path / "d.sock", gate, desk).signed_in()


@pytest.fixture
def stranger(browser: Visitor) -> Visitor:
    """One that was not let in."""
    return Visitor(browser.socket, browser.gate, browser.desk)


def kept(browser: Visitor) -> dict[str, bytes]:
    """All that the desk could have changed."""
    folders = (browser.desk.state.folder, browser.desk.folder, browser.desk.studies)
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def approval(browser: Visitor, of: str = STUDY.hash()) -> Path:
    return browser.desk.state.approval(of)


# ---- who may ask -----------------------------------------------------------------------------------------------


def test_nobody_gets_in_without_the_printed_address(stranger: Visitor) -> None:
    before = kept(stranger)
    for cookie in (None, "crossprobe_desk=", "crossprobe_desk=x", f"crossprobe_desk={stranger.gate.token}", "=;;\\"):
        for path in PAGES:
            answer = stranger.get(path, Cookie=cookie)
            assert answer.status == 403
            assert "north" not in answer.text
        for path in FORMS:
            assert stranger.post(path, {"Cookie": cookie}, name="Eve", read="yes").status == 403
    for wrong in ("/?token=", "/?token=guess", f"/?token={stranger.gate.session}", "/?token=%ff", f"/?{'a=1&' * 9}"):
        assert stranger.get(wrong).status in (400, 403)
        assert "Set-Cookie" not in stranger.get(wrong).headers
    assert kept(stranger) == before


def test_the_printed_address_becomes_a_cookie_that_no_script_and_no_other_site_can_use(stranger: Visitor) -> None:
    answer = stranger.get(f"/?token={stranger.gate.token}")
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    cookie, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert attributes == ["HttpOnly", "SameSite=Strict", "Path=/"]
    assert stranger.gate.token not in cookie
    page = stranger.get("/", Cookie=cookie)
    assert page.status == 200
    assert stranger.gate.token not in page.text + str(page.headers)
    assert len({*vars(Gate()).values(), *vars(stranger.gate).values()}) == 6


@pytest.mark.parametrize(
    "host", [None, "", "evil.example", "evil.example:8600", "127.0.0.1.evil.example", "127.0.0.1@evil.example",
             "evil.example#127.0.0.1", "localhost/evil", "[::1", "127.0.0.1:port", "192.168.0.7:8600"],
)  # fmt: skip
def test_a_name_that_was_rebound_to_this_machine_gets_nothing(browser: Visitor, host: str | None) -> None:
    before = kept(browser)
    for path in (*PAGES, "/desk.css", f"/?token={browser.gate.token}"):
        answer = browser.get(path, Host=host)
        assert answer.status == 421
        assert "Set-Cookie" not in answer.headers
    assert browser.post(FORMS[2], {"Host": host, "Origin": f"http://{host}"}, name="Eve").status == 421
    assert kept(browser) == before


def test_each_name_of_this_machine_is_answered(browser: Visitor) -> None:
    for host in ("127.0.0.1:8600", "localhost:8600", "LOCALHOST", "[::1]:9000"):
        assert browser.get("/ledger", Host=host).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": None},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "https://127.0.0.1:8600"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": f"http://{HOST}.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_on_another_page_does_nothing(browser: Visitor, headers: dict[str, str | None]) -> None:
    before, seen = kept(browser), browser.seen(PAGES[3])
    for path in FORMS:
        assert browser.post(path, headers, name="Eve", read="yes", seen=seen).status == 403
    assert kept(browser) == before
    assert not browser.desk.busy


def test_a_form_without_the_hidden_field_does_nothing(browser: Visitor) -> None:
    before, seen = kept(browser), browser.seen(PAGES[3])
    for value in ("", "guess", browser.gate.session, browser.gate.token, "\N{LATIN SMALL LETTER E WITH ACUTE}"):
        for path in FORMS:
            answer = browser.post(path, **{FIELD: value, "name": "Eve", "read": "yes", "seen": seen})
            assert answer.status == 403
    assert browser.post(FORMS[2], body=b"name=Eve&read=yes").status == 403
    assert kept(browser) == before


def test_a_get_changes_nothing_whatever_it_asks_for(browser: Visitor) -> None:
    before = kept(browser)
    form = f"?{FIELD}={browser.gate.csrf}&name=Eve&read=yes&seen={browser.seen(PAGES[3])}"
    assert [browser.get(path).status for path in (*PAGES, "/desk.css")] == [200] * 6
    assert [browser.get(path + form).status for path in FORMS] == [404] * 4
    assert [browser.get(path + "?done=approved").status for path in PAGES] == [200] * 5
    for method in ("PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT"):
        assert browser.get(FORMS[2] + form, method).status == 501
    assert kept(browser) == before
    assert not browser.desk.busy


@pytest.mark.parametrize(
    "path",
    ["/../state/secret", "/study/../../secret", "/study/..%2f..%2fsecret", "//etc/passwd", "/desk.css/../secret",
     "/study/" + "a" * 64, "/study/" + "A" * 64, f"/study/{STUDY.hash()}/../../x", f"/study/{STUDY.hash()}/",
     "/static/x", "/study/study.yaml", "http://evil.example/etc", "/data/sheet", "/desk.css.j2", "/study.html.j2",
     "/?", "/%00"],
)  # fmt: skip
def test_no_address_reaches_a_file(browser: Visitor, path: str) -> None:
    for answer in (browser.get(path), browser.post(path), browser.post(path + "/approve", name="E", read="yes")):
        assert answer.status in ((200, 404) if path == "/?" else (404, 409))
        assert "root:" not in answer.text
        assert SECRET.decode("latin-1") not in answer.text
    assert not list(browser.desk.state.approvals())


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (413, {}, b"name=" + b"a" * MOST_BYTES),
        (413, {"Content-Length": "999999999"}, b""),
        (411, {"Content-Length": "9" * 5000}, b""),
        (411, {"Content-Length": None}, b""),
        (411, {"Content-Length": "-1"}, b""),
        (411, {"Transfer-Encoding": "chunked"}, b"0\r\n\r\n"),
        (415, {"Content-Type": "multipart/form-data; boundary=x"}, b"--x--"),
        (415, {"Content-Type": "text/plain"}, b"csrf=1"),
        (400, {}, b"&".join(b"a%d=1" % number for number in range(20))),
        (400, {}, b"name=%ff"),
        (400, {}, b"\xff\xfe"),
        (400, {}, b"csrf=1&csrf=2"),
    ],
)
def test_what_is_no_form_of_the_desk_is_refused(
    browser: Visitor, status: int, headers: dict[str, str | None], body: bytes
) -> None:
    assert browser.post(FORMS[2], headers, body=body).status == status
    assert not approval(browser).exists()


def test_every_reply_forbids_scripts_frames_and_a_copy_on_the_disk(browser: Visitor) -> None:
    replies = [browser.get(path) for path in (*PAGES, "/desk.css", "/nowhere")]
    replies += [browser.get("/", Cookie=""), browser.get("/", "BREW"), browser.post(FORMS[3], name="Anna")]
    for reply in replies:
        for name, value in HEADERS.items():
            assert reply.headers[name] == value
        assert not re.search(r"<script|javascript:|\son\w+=|style=|<style", reply.text)
        assert not re.search(r"""(?:src|href)=["'](?!/|#main|data:)""", reply.text)
    assert "script-src" not in HEADERS["Content-Security-Policy"]
    assert HEADERS["Content-Security-Policy"].startswith("default-src 'none'")


# ---- what it does ----------------------------------------------------------------------------------------------


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


def test_a_dry_run_shows_what_would_leave_and_leaves_nothing_behind(
    browser: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    before = kept(browser)
    assert browser.post(FORMS[1]).status == 303
    assert browser.post(FORMS[1]).status == 409  # one at a time
    wait_for(browser.desk)
    assert browser.desk.work is None
    page = browser.get(PAGES[3]).text
    for words in ("enrolment", "pretrain supervise", "infuse infuse"):
        assert f'<th scope="row">{words}</th><td>ok</td>' in page
    assert kept(browser) == before
    assert not [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()]


def test_work_that_fails_says_so_without_a_traceback(browser: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("secret-path")

    monkeypatch.setattr(desks, "check_site", fails)
    browser.post("/data/check")
    wait_for(browser.desk)
    page = browser.get("/").text
    assert "checking the data failed" in page
    assert "secret-path" not in page


# ---- what it shows ---------------------------------------------------------------------------------------------


def test_the_page_shows_all_that_the_proposal_holds(browser: Visitor) -> None:
    proposal = browser.desk.case(STUDY.hash()).proposal
    assert proposal is not None
    page = html.unescape(browser.get(PAGES[3]).text)
    wanted = [*proposal.warnings, proposal.policy_hash, *proposal.tensors]
    wanted += [setting.words for stage in proposal.stages for setting in stage.settings]
    wanted += [name for shapes in proposal.tensors.values() for name in shapes]
    wanted += [f"{stage.sent_bytes:,}" for stage in proposal.stages]
    assert [words for words in wanted if words not in page] == []
    assert "has no differential privacy" in page
    assert page.index("Read this first") < page.index("What would leave") < page.index("Decide")


def test_differences_to_the_last_approved_study_are_marked(browser: Visitor) -> None:
    assert "No other study is approved here" in browser.get(PAGES[3]).text
    other = load_study(write_study(browser.desk.studies / "other.yaml", name="other", batch_size=8,
                                   stages=content()["stages"][:3]))  # fmt: skip
    site = load_site(browser.desk.folder)
    approve(browser.desk.state, site, other, by="Anna")
    page = browser.get(PAGES[3]).text
    assert "Compared with other, approved by Anna" in page
    assert re.search(r"pretrain: images behind each update.*</th><td>16</td><td>8</td>", page)
    assert '<th scope="row">stage infuse</th><td>-</td><td>part of it</td>' in page
    assert '<span class="changed">changed, was 16</span>' in page
    assert "changed, was" not in browser.get(f"/study/{other.hash()}").text


def test_a_void_approval_says_why(browser: Visitor) -> None:
    browser.post(FORMS[2], name="Anna", read="yes", seen=browser.seen(PAGES[3]))
    config = browser.desk.folder / "site.yaml"
    config.write_text(config.read_text().replace("min_update_patients: 1", "min_update_patients: 2"))
    browser.desk.check_data()
    wait_for(browser.desk)
    assert "does not hold</b>: approved by Anna" in browser.get("/").text
    assert "approved for the site&#39;s policy" in browser.get(PAGES[3]).text


def test_a_private_study_shows_its_budget_as_a_bar(browser: Visitor) -> None:
    private = load_study(
        write_study(
            browser.desk.studies / "private.yaml",
            name="private",
            privacy={"nominal_patients": 100, "noise_multiplier": 1.0, "epsilon_cap": 0.5},
            stages=content()["stages"][:1],
        )
    )
    page = browser.get(f"/study/{private.hash()}").text
    proposal = browser.desk.case(private.hash()).proposal
    assert proposal is not None
    assert proposal.budget is not None
    width = round(100 * min(proposal.budget.after / 0.5, 1), 2)
    assert f'width="{width}"' in page
    assert 'class="spent" width="0.0"' in page
    assert f"{proposal.budget.after:.3f} with this study" in page


def test_the_ledger_is_a_timeline_and_damage_is_told(browser: Visitor) -> None:
    state = browser.desk.state
    request = EnrolRequest(study=STUDY.hash())
    message = Message.of(request)
    ledger = Ledger(state.ledger)
    for way in WAYS:
        ledger.append(entry(way, message))
    page = browser.get("/ledger").text
    assert page.count('class="out"') == page.count('class="in"') == 1
    assert f"What left: 1 messages, {len(message.payload)} bytes" in page
    assert "study tiny" in page
    state.ledger.write_bytes(state.ledger.read_bytes().replace(b'"direction":"out"', b'"direction":"in"'))
    assert "not as the worker wrote it" in browser.get("/ledger").text


def test_what_others_wrote_is_text_and_never_markup(browser: Visitor, tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    (browser.desk.studies / "bad.yaml").write_text(f'name: "{bad}"\n"{bad}": 1\nstages: []\n')
    (browser.desk.studies / f"{bad.replace('/', '')}.yaml").write_text(f"- {bad}\n")
    site = load_site(browser.desk.folder)
    approve(browser.desk.state, site, study(name="hostile", initial={}), by=f"{bad}\"'><img src=x>")
    (browser.desk.state.folder / "approvals" / "<b>.json").write_text("{}")
    hostile = write_site(tmp_path / "hostile", "source")
    manifest = hostile / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("kept-hostile-train-0", bad).replace("probe-x", f"'{bad}'"))
    assert bad in manifest.read_text()
    for folder in (hostile, browser.desk.folder):
        browser.desk.folder = folder
        browser.desk.check_data()
        wait_for(browser.desk)
        assert browser.desk.work is None
        pages = [browser.get(path) for path in (*PAGES, f"/study/{study(name='hostile').hash()}")]
        assert [page.status for page in pages] == [200] * 6
        for page in pages:
            assert not re.search("<script|<img src=x|<b>[.]json", page.text)
        assert html.escape(bad) in pages[0].text
        assert html.escape(bad) in pages[5].text
    browser.desk.folder = hostile
    browser.desk.check_data()
    wait_for(browser.desk)
    assert html.escape(bad) in browser.get("/data").text
    refused = browser.post(f"/study/{'b' * 64}/withdraw", name=bad)
    assert refused.status == 409
    assert "<script" not in refused.text
