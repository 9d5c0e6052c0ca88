"""Who may ask the hospital's desk: attacked as another page, another user or another name would."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hospital import SECRET
from visitor import FORMS, HOST, PAGES, STUDY, Visitor, approval, kept, let_in

from clients.desk.gate import FIELD, HEADERS, MOST_BYTES, Gate


@pytest.fixture(scope="module")
def browser(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """One desk for all: nothing that is tried here may change anything."""
    with let_in(tmp_path_factory.mktemp("desk"), pair[0]) as visitor:
        yield visitor


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
    assert not browser.desk.background.busy


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
    assert [browser.get(path + form).status for path in FORMS] == [404] * 5
    assert [browser.get(path + "?done=approved").status for path in PAGES] == [200] * 5
    for method in ("PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT"):
        assert browser.get(FORMS[2] + form, method).status == 501
    assert kept(browser) == before
    assert not browser.desk.background.busy


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
