"""The report of a thousand sites: roles instead of rows, small and made in seconds, and nothing lost from its CSV.

What it takes is printed by: python -m pytest -s tests/server/test_report_of_many_sites.py
"""

import base64
import csv
import io
import random
import re
import time

import numpy as np
import pytest
from fabricated import SOURCE, TARGET, entry, evaluation, fabricate
from PIL import Image

from server.history import SiteRecord
from server.report.drawn import Drawn, Example, PatientDice, keep
from server.report.page import render_report
from server.state import Participant

SITES = 1000
MOST_BYTES, MOST_S = 5_000_000, 20.0
LATE = {f"site-{i:04d}" for i in range(0, SITES, 10)}


def name(number: int) -> str:
    return f"site-{number:04d}"


PARTICIPANTS: dict[str, Participant] = {name(i): SOURCE if i % 3 == 0 else TARGET for i in range(SITES)}


def speckle(rng: np.random.Generator) -> bytes:
    """A picture as hard to compress as ultrasound at its worst: WebP of grey noise a few pixels wide."""
    coarse = Image.fromarray(rng.integers(0, 255, (150, 160), dtype=np.uint8)).resize((400, 375)).convert("RGB")
    buffer = io.BytesIO()
    coarse.save(buffer, "WebP", quality=70)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng, noise = random.Random(0), np.random.default_rng(0)
    evaluated = {}
    for site in PARTICIPANTS:
        difference = rng.gauss(0.05, 0.04)
        evaluated[site] = evaluation(
            (difference, difference - 0.03, difference + 0.03), dice=min(0.97, max(0.3, rng.gauss(0.8, 0.07)))
        )
    sites = {
        site: SiteRecord(one.role, "supervise", "late", f"no reply within {site} s")
        if site in LATE
        else entry(one.role, "supervise" if one.role == "source" else "self_supervise", 1, {})
        for site, one in PARTICIPANTS.items()
    }
    run = fabricate(tmp_path_factory.mktemp("many") / "run", PARTICIPANTS, evaluated, changes={1: {"sites": sites}})
    shown = [name(i) for i in (0, 3, 6, 1, 2, 4)]  # as many as `simulations.examples` draws
    pictures = [
        Example(site, PARTICIPANTS[site].role, "patient 1", {}, [(f"Panel {i}", speckle(noise)) for i in range(8)])
        for site in shown
    ]
    dice = {kind: [rng.random() for _ in range(100)] for kind in ("baseline", "infusion")}
    patients = [PatientDice(site, PARTICIPANTS[site].role, dice) for site in shown]
    keep(run, Drawn(pictures, patients))
    begun = time.process_time()
    page = render_report(run)
    took, size = time.process_time() - begun, page.stat().st_size
    print(f"\nreport of {SITES} sites with pictures of {len(shown)}: {size / 1e6:.2f} MB, {took:.1f} s of one core")
    assert took < MOST_S
    assert size < MOST_BYTES
    return page.read_text(encoding="utf-8")


def saved(html: str, table: str) -> list[list[str]]:
    """The rows of one of the page's CSV files."""
    found = re.search(rf'<a download="tiny-{table}.csv" href="data:text/csv;charset=utf-8;base64,([^"]*)"', html)
    assert found
    return list(csv.reader(io.StringIO(base64.b64decode(found[1]).decode())))


def test_roles_are_shown_instead_of_a_row_for_each_site(html: str) -> None:
    named = set(re.findall(r'<th scope="row">(site-\d+)', html))
    assert 14 <= len(named) <= 14 + 20 + 50  # the ranked, those that miss most replies, and reasons
    assert "666 target sites" in html
    assert "334 source sites" in html
    assert re.search(
        r"target, best of 666</span>.*target, median of 666</span>.*target, worst of 666</span>", html, re.S
    )
    assert "The first 50 of 100 reasons" in html


def test_each_site_is_in_the_saved_tables(html: str) -> None:
    header, *rows = saved(html, "results")
    assert {row[0] for row in rows} == set(PARTICIPANTS)
    assert len(rows) == 5 * SITES
    assert len(header) == len(rows[0])
    _, *replies = saved(html, "participation")
    assert {row[0] for row in replies if int(row[4]) < int(row[3])} == LATE
    assert len(saved(html, "problems")) == 1 + len(LATE)


def test_ranked_sites_are_those_of_the_saved_table(html: str) -> None:
    header, *rows = saved(html, "results")
    dice = {row[0]: float(row[header.index("dice")]) for row in rows if row[2] == "infusion" and row[1] == "target"}
    best = re.findall(r'<th scope="row">(site-\d+)<span class="role">target, (?:best|2|3) of 666</span>', html)
    assert sorted((dice[site] for site in best), reverse=True) == sorted(dice.values(), reverse=True)[:3]
    median = re.search(r'class="released-column"><th scope="row">target</th>.*?<b>([\d.]+)</b>', html, re.S)
    assert median
    assert float(median[1]) == pytest.approx(100 * np.median(list(dice.values())), abs=0.051)
