"""Report and live page in a real browser: no wider than it, readable in the dark, alive under their own policy."""

import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest
from browser import CHROMIUM, NO_BROWSER, dom, measured
from fabricated import PAIR, SOURCE, TARGET, entry, evaluation, fabricate, study_with_baseline
from PIL import Image

from common.baseline import baseline_of
from server.history import SiteRecord
from server.report.drawn import Drawn, Example, PatientDice, keep
from server.report.live import Run, live_page
from server.report.page import report_page
from server.watch import WatchServer

if CHROMIUM is None:
    warnings.warn(NO_BROWSER, stacklevel=1)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)

LONG = "department-of-paediatric-radiology-of-the-hospital-by-the-lake"
SITES = {"north": SOURCE, "east": TARGET, LONG: TARGET}


def picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (44, 30), (90, 90, 90)).save(buffer, "WebP")
    return buffer.getvalue()


def whole_report(folder: Path) -> str:
    """A report with everything that one can have."""
    evaluated = {site: evaluation((-0.12, -0.24, -0.01)) for site in SITES}
    evaluated["east"]["infusion/empty_truth_share"] = 0.07
    lost = {"east": SiteRecord("target", "self_train", "failed", "its SuperNode is gone " * 5)}
    changes = {3: {"sites": lost | {"north": entry("source", "supervise", 3, {})}, "rolled_back": True}}
    run = fabricate(folder / "run", SITES, evaluated, changes=changes)
    fabricate(run / "baseline", {"north": SOURCE}, study=baseline_of(study_with_baseline(), rounds=6))
    panels = [(f"Infusion over truth, outlines {i}", picture()) for i in range(8)]
    pictures = [Example(site, one.role, "patient 1", {"infusion": 0.7}, panels) for site, one in SITES.items()]
    dice = {"baseline": [0.1 * i for i in range(10)], "infusion": [0.5] * 10}
    keep(run, Drawn(pictures, [PatientDice(site, one.role, dice) for site, one in SITES.items()]))
    return report_page(run)


def many_report(folder: Path) -> str:
    participants = {f"{i:03d}-{LONG}"[:63]: SOURCE if i % 3 == 0 else TARGET for i in range(60)}
    return report_page(
        fabricate(folder / "run", participants, {s: evaluation((0.05, 0.02, 0.08)) for s in participants})
    )


def live(folder: Path) -> str:
    lost = {"east": SiteRecord("target", "self_train", "failed", "its SuperNode is gone " * 5)}
    slow = {LONG: replace(entry("target", "self_train", 3, {}), seconds=1700.0)}
    sites = lost | slow | {"north": entry("source", "supervise", 3, {})}
    run = fabricate(folder / "run", SITES, done=4, changes={3: {"sites": sites}})
    return live_page(Run.read(run), datetime(2026, 11, 23, 3, 52, tzinfo=UTC))


@pytest.mark.parametrize("page", [whole_report, many_report, live])
def test_page_is_no_wider_than_its_window_and_readable_light_and_dark(
    tmp_path: Path, page: Callable[[Path], str]
) -> None:
    html = page(tmp_path)
    grounds = set()
    for width, dark in ((400, False), (500, True), (650, False), (900, True), (1200, False), (1200, True)):
        found = measured(html, tmp_path, width=width, dark=dark)
        assert found["width"] == width
        assert found["scroll"] <= width, f"{width} px: {found['beyond']}"
        assert found["beyond"] == []
        assert found["words"] > 60
        assert found["faint"] == [], f"dark: {dark}"
        assert found["nameless"] == 0
        grounds.add((dark, found["ground"]))
    assert len(grounds) == 2
    assert len({ground for _, ground in grounds}) == 2


def test_measure_finds_a_table_that_is_too_wide_and_words_that_are_too_faint(tmp_path: Path) -> None:
    html = whole_report(tmp_path).replace("</main>", '<table class="no"><td>' + "x" * 300 + "</td></table></main>")
    html = html.replace("</style>", ".no td { white-space: pre; color: #eee; overflow-wrap: normal; }</style>")
    found = measured(html, tmp_path, width=900)
    assert any("no" in one for one in found["beyond"])
    assert found["scroll"] > 900
    assert any("xxx" in one for one in found["faint"])


def test_a_picture_fills_the_window_once_it_is_opened(tmp_path: Path) -> None:
    html = whole_report(tmp_path)
    assert 'href="#pictures-1-1-6"' in html
    assert measured(html, tmp_path, width=900)["target"] is None
    width, height = measured(html, tmp_path, width=900, fragment="#pictures-1-1-6")["target"]
    assert width == 900
    assert height > 500


def test_live_page_renews_itself_under_its_own_policy_and_becomes_the_report(tmp_path: Path) -> None:
    steps = [
        fabricate(tmp_path / "a", PAIR, done=2),
        fabricate(tmp_path / "b", PAIR, done=5),
        fabricate(tmp_path / "c", PAIR, {"east": evaluation((0.061, 0.021, 0.099))}),
    ]
    asked = []

    def page(now: datetime) -> str:
        asked.append(now)
        step = steps[min(len(asked), most) - 1]
        return report_page(step) if step.name == "c" else live_page(Run.read(step), now)

    with WatchServer(tmp_path) as server:
        server.watcher.page = page  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        most = 2
        text = dom(server.url, width=900, wait_ms=8_000)
        assert len(asked) > 1
        assert "5 of 7 rounds are done" in text
        assert "Not renewed" not in re.sub(r"<script>.*</script>", "", text, flags=re.DOTALL)
        asked.clear()
        most = 3
        assert "beats the baseline by 6.1 Dice points" in dom(server.url, width=900, wait_ms=12_000)
        server.shutdown()
