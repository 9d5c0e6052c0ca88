"""Long work beside the desk's pages: what it shows, how it fails, and that a person can stop it."""

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from visitor import FORMS, PAGES, Visitor, kept, wait_for

from clients.desk import desk as desks
from clients.learning import training
from clients.learning.training import TaskCancelled, TaskContext


def test_a_dry_run_shows_what_would_leave_and_leaves_nothing_behind(
    browser: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    before = kept(browser)
    assert browser.post(FORMS[1]).status == 303
    assert browser.post(FORMS[1]).status == 409  # one at a time
    wait_for(browser.desk)
    assert browser.desk.background.work is None
    page = browser.get(PAGES[3]).text
    for words in ("enrolment", "pretrain supervise", "infuse infuse"):
        assert f'<th scope="row">{words}</th><td>ok</td>' in page
    assert kept(browser) == before
    assert not [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()]


def test_a_person_stops_a_dry_run_within_a_task_and_nothing_of_it_is_kept(
    browser: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    at_step, go_on, ended = threading.Event(), threading.Event(), []
    fit = training.fit

    def slow(context: TaskContext, *rest: Any, **more: Any) -> Any:
        at_step.set()
        assert go_on.wait(60)
        try:
            return fit(context, *rest, **more)
        except TaskCancelled:
            ended.append(context)
            raise

    monkeypatch.setattr(training, "fit", slow)
    before = kept(browser)
    browser.post(FORMS[1])
    assert at_step.wait(60)
    assert re.search(r"At work: trying out tiny, 1 of \d+", browser.get(PAGES[3]).text)
    answer = browser.post("/stop")
    assert (answer.status, answer.headers["Location"]) == (303, f"{PAGES[3]}?done=stopped")
    go_on.set()
    wait_for(browser.desk)
    assert browser.desk.background.work is None
    assert len(ended) == 1
    assert not browser.desk.tried
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
