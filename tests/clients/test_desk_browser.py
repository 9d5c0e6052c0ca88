"""The desk as a person uses it, in headless Chromium: what the browser itself makes of cookie, origin and policy."""

import asyncio
import shutil
import socket as sockets
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from finished import Finished
from hospital import SECRET
from tiny import content, study, write_study
from visitor import wait_for
from webdriver import CHROMIUM, DRIVER, NO_DRIVER, window

from clients.desk.desk import Desk
from clients.desk.forward import forward
from clients.desk.gate import Gate
from clients.desk.predictions import Places, only_desk, read
from clients.desk.server import serving
from clients.governance.state import Answered, State
from common.release import RELEASE

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=NO_DRIVER)
STUDY = study()
#: Words whose colour is too near to what is behind them: a contrast below 4.5 (WCAG 2.1, AA).
FAINT = """(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = one => {
    for (; one; one = one.parentElement) {
      const colour = rgb(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")].filter(one => [...one.childNodes].some(
    node => node.nodeType === 3 && node.textContent.trim())).filter(one => {
      const pair = [light(rgb(getComputedStyle(one).color)), light(behind(one))];
      return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05) < 4.5;
    }).map(one => one.outerHTML.slice(0, 80));
})()"""
NAMELESS = """[...document.querySelectorAll("a, button, input:not([type=hidden]), summary, img, svg, progress")].filter(
  one => !(one.textContent.trim() || one.getAttribute("aria-label") || one.alt || (one.labels && one.labels.length)
    || one.querySelector("img[alt]"))
).map(one => one.outerHTML.slice(0, 80))"""


@pytest.fixture
def desk(tmp_path: Path, pair: Sequence[Path], finished: Finished) -> Iterator[Desk]:
    studies = tmp_path / "studies"
    studies.mkdir()
    write_study(studies / "study.yaml")
    privacy = {"nominal_patients": 100, "noise_multiplier": 1.0}
    write_study(studies / "private.yaml", name="private", privacy=privacy, stages=content()["stages"][:1])
    shutil.copytree(finished.run / RELEASE, tmp_path / "models" / "first")
    places = Places(tmp_path / "models", tmp_path / "kept")
    made = Desk(pair[0], State.create(tmp_path / "state", SECRET), studies, places=places)
    made.check_data()
    wait_for(made)
    with only_desk(places):
        yield made


@pytest.fixture
def address(tmp_path: Path, desk: Desk) -> Iterator[str]:
    """What the desk prints; its pages come through the forwarder."""
    gate = Gate()
    with sockets.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    with serving(desk, gate, tmp_path / "d.sock"):
        started = asyncio.Event()
        task = asyncio.run_coroutine_threadsafe(forward(tmp_path / "d.sock", "127.0.0.1", port, started), loop)
        asyncio.run_coroutine_threadsafe(started.wait(), loop).result(30)
        yield f"http://127.0.0.1:{port}/?token={gate.token}"
        task.cancel()


def test_a_person_reads_tries_approves_and_withdraws(desk: Desk, address: str) -> None:
    approval, place = desk.state.approval(STUDY.hash()), address.partition("?")[0]
    with window() as browser:
        browser.open(place)
        assert browser.text("h1") == "Not done"
        browser.open(address)
        assert browser.text("h1") == "north, a source site"
        assert browser.evaluate("location.href + document.cookie") == place  # no token, and no script reads the cookie
        browser.open(f"{place}study/{STUDY.hash()}")
        browser.type("#approver", "Anna Berg")
        browser.click("button.approve")  # the box is not ticked: the browser itself does not send it
        assert not approval.exists()
        browser.click("input[name=read]")
        browser.click("button.approve")
        browser.wait_for("[role=status]", "Approved")
        assert approval.exists()
        browser.type("#withdrawer", "Anna Berg")
        browser.click("button.withdraw")
        browser.wait_for("[role=status]", "Taken back")
        assert not approval.exists()
        refused = [line for line in browser.complaints() if "403" not in line]
        assert refused == []


def test_a_person_segments_the_sites_images_and_looks_at_them(desk: Desk, address: str) -> None:
    with window() as browser:
        browser.open(address)
        browser.click("nav a[href='/predictions']")
        browser.click("option[value='site/test']")
        browser.click("form.decide button")
        browser.wait_for("[role=status]", "The images are being segmented")
        browser.wait_for("tbody th", f"{datetime.now(UTC):%Y-}")  # the page looks again by itself
        browser.click("tbody a")
        browser.wait_for("h1", "5 images segmented")
        shown = "[...document.querySelectorAll('main img')].filter(one => one.naturalWidth > 20).length"
        assert browser.evaluate(shown) == 10
        browser.click(".found a")
        browser.wait_for("h1", "images/scan-north-test")
        assert browser.evaluate(shown) == 2
        assert browser.complaints() == []


@pytest.mark.parametrize("dark", [False, True])
def test_each_page_fits_a_phone_and_can_be_read(desk: Desk, address: str, dark: bool) -> None:
    place = address.partition("?")[0]
    desk.predict("first", "site/test", "")
    wait_for(desk)
    assert desk.places
    ((made,), _) = read(desk.places.kept)
    desk.state.keep_answer(STUDY.hash(), Answered(round=2, request="r", reply=b"kept"))
    pages = ["", "data", "ledger", *(f"study/{case.hash}" for case in desk.cases()[0])]
    pages += ["predictions", f"predictions/{made.id}", f"predictions/{made.id}/image/1"]
    with window(dark=dark) as browser:
        browser.open(address)
        for page in pages:
            browser.open(place + page)
            browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            for width in (390, 900, 1200):
                browser.width(width)
                assert browser.evaluate("document.documentElement.scrollWidth") == width, page
            assert browser.evaluate(FAINT) == []
            assert browser.evaluate(NAMELESS) == []
            assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
                "rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)"
            )
        assert browser.complaints() == []
