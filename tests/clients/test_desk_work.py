"""Long work beside the desk's pages: what it shows, how it fails, and that a person can stop it."""

from pathlib import Path

import pytest
from visitor import FORMS, PAGES, Visitor, kept, wait_for

from clients.desk import desk as desks


def test_a_dry_run_shows_what_would_leave_and_leaves_nothing_behind(
    browser: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    before = kept(browser)
    assert browser.post(FORMS[1]).status == 303
    assert browser.post(FORMS[1]).status == 409  # one at a time
    assert browser.post("/work/stop").status == 409  # it does not tell how far it is
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
