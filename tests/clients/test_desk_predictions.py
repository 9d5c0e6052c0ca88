"""Predictions at the desk: released models on own pictures, which nobody gets at by an address or a form."""

import html
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from finished import Finished
from hospital import SECRET
from PIL import Image
from tiny import write_study
from visitor import Visitor, wait_for

import crossprobe
from clients.desk.desk import Desk
from clients.desk.gate import Gate
from clients.desk.predictions import Places, only_desk, read
from clients.desk.server import serving
from clients.governance.state import State
from clients.released import Model
from common.errors import RunError
from common.release import RELEASE, WEIGHTS

BAD = "<b onload=x>.png"


@pytest.fixture
def browser(tmp_path: Path, pair: Sequence[Path], finished: Finished) -> Iterator[Visitor]:
    """A browser at the desk of `north`, with one model and a folder of two further pictures."""
    shutil.copytree(finished.run / RELEASE, tmp_path / "models" / "first")
    archive = tmp_path / "archive"
    (archive / "monday").mkdir(parents=True)
    for file in (archive / "monday" / BAD, archive / "loose.png"):
        Image.fromarray(np.tile(np.arange(48, dtype=np.uint8) * 5, (40, 1))).save(file, "PNG")
    (archive / "monday" / "notes.odt").write_text("no image")
    places = Places(tmp_path / "models", tmp_path / "kept", archive)
    state = State.create(tmp_path / "state", SECRET)
    desk, gate = Desk(pair[0], state, write_study(tmp_path / "study.yaml"), places=places), Gate()
    desk.check_data()
    wait_for(desk)
    with only_desk(places), serving(desk, gate, tmp_path / "d.sock"):
        yield Visitor(tmp_path / "d.sock", gate, desk).signed_in()


def make(browser: Visitor, images: str, **form: str) -> str:
    """Segment, wait, and return the address of what was made."""
    answer = browser.post("/predictions/make", **({"model": "first", "images": images, "spacing": ""} | form))
    assert (answer.status, answer.headers["Location"]) == (303, "/predictions?done=segmenting"), answer.text
    wait_for(browser.desk)
    assert browser.desk.background.work is None, browser.desk.background.work
    found = re.search(r'href="(/predictions/\w+)"', browser.get("/predictions").text)
    assert found
    return found[1]


def kept(browser: Visitor) -> Path:
    assert browser.desk.places
    return browser.desk.places.kept


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_sites_images_are_segmented_as_the_command_does_it(browser: Visitor, tmp_path: Path) -> None:
    place = make(browser, "site/test")
    (made,), _ = read(kept(browser))
    assert place == f"/predictions/{made.id}"
    assert len(made.rows) == 5
    words = ["predict", "--model", tmp_path / "models" / "first", "--images", browser.desk.folder]
    assert crossprobe.main([str(word) for word in (*words, "--out", tmp_path / "by-command")]) == 0
    for row in made.rows:
        for kind in ("masks", "confidence", "overlays"):
            by_desk, by_command = (folder / kind / row.image for folder in (kept(browser) / made.id,
                                                                           tmp_path / "by-command"))  # fmt: skip
            assert by_desk.read_bytes() == by_command.read_bytes()
    page = browser.get(place).text
    assert page.count('<img src="data:image/png;base64,') == 10
    table = browser.get(f"{place}/results.csv")
    assert table.headers["Content-Type"].startswith("text/csv")
    assert table.headers["Content-Disposition"] == f'attachment; filename="{made.id}.csv"'
    lines = (tmp_path / "by-command" / "results.csv").read_text().splitlines()
    assert set(table.text.splitlines()) < set(lines)
    first = browser.get(f"{place}/image/1").text
    assert html.escape(made.rows[0].image) in first
    assert "/image/2" in first
    assert "/image/0" not in first


def test_further_images_are_offered_by_folder_and_what_fails_is_named(browser: Visitor) -> None:
    page = browser.get("/predictions").text
    assert 'value="images/monday"' in page
    page = browser.get(make(browser, "images/monday")).text
    assert "1 image segmented" in page
    assert "Not segmented, or not whole: 1" in page
    assert "<li>notes.odt: " in page
    assert html.escape(BAD) in page
    assert BAD not in page
    assert "data:image/png" in browser.get(make(browser, "images")).text


def test_pages_hold_a_few_pictures_each_and_those_to_look_at_again_come_first(
    browser: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.desk.views.MOST_PICTURES", 2)
    monkeypatch.setattr("clients.results.summary.LOOK_AGAIN_DICE", 0.5)
    place = make(browser, "site/test")
    (made,), _ = read(kept(browser))
    names = [re.findall(r"Outline on (\S+)\"", browser.get(f"{place}/page/{page}").text) for page in (1, 2, 3)]
    assert [len(page) for page in names] == [2, 2, 1]
    marked = [next(bool(row.look_again) for row in made.rows if row.image == name) for page in names for name in page]
    assert marked == sorted(marked, reverse=True)
    assert browser.get(f"{place}/page/4").status == browser.get(f"{place}/page/0").status == 409
    assert browser.get(f"{place}/image/6").status == browser.get(f"{place}/image/0").status == 409


def test_nothing_is_shown_or_segmented_for_a_stranger_or_by_a_get(browser: Visitor) -> None:
    place = make(browser, "site/val")
    before = files(kept(browser))
    stranger = Visitor(browser.socket, browser.gate, browser.desk)
    for path in ("/predictions", place, f"{place}/image/1", f"{place}/page/1", f"{place}/results.csv"):
        answer = stranger.get(path)
        assert answer.status == 403
        assert "scan-north" not in answer.text
        assert browser.get(path).headers["Cache-Control"] == "no-store"
    form = {"model": "first", "images": "site", "spacing": ""}
    assert stranger.post("/predictions/make", **form).status == 403
    assert browser.post("/predictions/make", {"Origin": "http://evil.example"}, **form).status == 403
    assert browser.post("/predictions/make", **form, csrf="guess").status == 403
    assert browser.get("/predictions/make?model=first&images=site&spacing=").status == 404
    assert not browser.desk.background.busy
    assert files(kept(browser)) == before


@pytest.mark.parametrize(
    ("model", "images"),
    [("../models/first", "site"), ("/", "site"), ("", "site"), ("first", ""), ("first", "images/../../state"),
     ("first", "images/.."), ("first", "/etc"), ("first", "images//etc"), ("first", "site/masks"),
     ("first", "images/monday/../..")],
)  # fmt: skip
def test_a_form_chooses_only_among_what_the_page_offers(browser: Visitor, model: str, images: str) -> None:
    assert browser.post("/predictions/make", model=model, images=images, spacing="").status == 409
    assert not browser.desk.background.busy
    assert files(kept(browser)) == {"lock"}


@pytest.mark.parametrize("spacing", ["wide", "0", "-1", "120", "nan", "1e400"])
def test_a_spacing_that_makes_no_sense_is_refused(browser: Visitor, spacing: str) -> None:
    assert browser.post("/predictions/make", model="first", images="site", spacing=spacing).status == 409
    assert files(kept(browser)) == {"lock"}


def test_a_person_stops_a_long_prediction_and_nothing_of_it_is_kept(
    browser: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, at_second, go_on, asked = Model.maps, threading.Event(), threading.Event(), []

    def slow(self: Model, image: np.ndarray, spacing_mm: float | None) -> dict[str, np.ndarray]:
        asked.append(image.shape)
        if len(asked) == 2:
            at_second.set()
            assert go_on.wait(60)
        return maps(self, image, spacing_mm)

    monkeypatch.setattr(Model, "maps", slow)
    browser.post("/predictions/make", model="first", images="site", spacing="")
    assert at_second.wait(60)
    page = browser.get("/predictions").text
    assert re.search(r"At work: segmenting all \d+ images of north with first, 1 of \d+", page)
    assert 'action="/stop"' in page
    assert Visitor(browser.socket, browser.gate, browser.desk).post("/stop").status == 403
    assert browser.post("/stop", {"Origin": "http://evil.example"}).status == 403
    assert browser.post("/stop", csrf="guess").status == 403
    assert browser.get("/stop").status == 404
    assert "Being stopped" not in browser.get("/").text
    answer = browser.post("/stop")
    assert (answer.status, answer.headers["Location"]) == (303, "/predictions?done=stopped")
    page = browser.get("/predictions?done=stopped").text
    assert "Being stopped" in page
    assert 'action="/stop"' not in page
    go_on.set()
    wait_for(browser.desk)
    assert browser.desk.background.work is None
    assert len(asked) == 2
    assert files(kept(browser)) == {"lock"}
    assert browser.post("/stop").status == 409
    assert make(browser, "site/val")


def test_no_address_reaches_a_file_beside_a_prediction(browser: Visitor) -> None:
    place = make(browser, "site/val")
    (kept(browser) / "20200101T000000000000Z").mkdir()
    (kept(browser) / "20200101T000000000000Z" / "results.csv").write_text("root:secret")
    for path in ("/predictions/20200101T000000000000Z", "/predictions/20200101T000000000000Z/results.csv",
                 f"{place}/prediction.json", f"{place}/../lock", f"{place}/overlays/x.png", f"{place}/image/../1",
                 f"{place}/image/99999999", "/predictions/lock", f"{place}/results.csv/"):  # fmt: skip
        answer = browser.get(path)
        assert answer.status in (404, 409)
        assert "root:" not in answer.text


def test_a_record_that_names_a_file_elsewhere_shows_none(browser: Visitor) -> None:
    place = make(browser, "site/val")
    (record,) = kept(browser).glob("*/prediction.json")
    (made,), _ = read(kept(browser))
    secret = kept(browser).parent / "secret.png"
    Image.new("L", (9, 9)).save(secret)
    text = record.read_text()
    record.write_text(text.replace(made.rows[0].image, f"../../../{secret.name}"))
    page = browser.get(f"{place}/image/1").text
    assert "data:image/png" not in page
    assert "This picture is gone" in page
    record.write_text(text[:-20])
    page = browser.get("/predictions").text
    assert f"Cannot be read: {made.id}" in page
    assert f'href="{place}"' not in page


def test_a_model_that_is_not_whole_or_not_the_coordinators_segments_nothing(browser: Visitor) -> None:
    browser.desk.key = Ed25519PrivateKey.generate().public_key()
    browser.post("/predictions/make", model="first", images="site/val", spacing="")
    wait_for(browser.desk)
    assert browser.desk.background.work is not None
    assert "SHA256SUMS.sig" in browser.desk.background.work.error
    browser.desk.key = None
    assert browser.desk.places
    weights = browser.desk.places.models / "first" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    browser.post("/predictions/make", model="first", images="site/val", spacing="")
    wait_for(browser.desk)
    assert "expected SHA-256" in browser.get("/predictions").text
    assert files(kept(browser)) == {"lock"}


def test_what_was_begun_is_taken_away_and_two_desks_do_not_share_a_folder(tmp_path: Path, browser: Visitor) -> None:
    assert browser.desk.places
    with pytest.raises(RunError, match="another desk"), only_desk(browser.desk.places):
        pass
    assert kept(browser).stat().st_mode & 0o077 == 0
    places = Places(tmp_path / "models", tmp_path / "other")
    (tmp_path / "other" / ".begun-20260101T000000000000Z" / "masks").mkdir(parents=True)
    with only_desk(places):
        assert files(places.kept) == {"lock"}


def test_without_models_the_page_says_what_is_missing(browser: Visitor) -> None:
    browser.desk.places = None
    assert "--models" in browser.get("/predictions").text
    assert browser.post("/predictions/make", model="first", images="site", spacing="").status == 409
    assert browser.get("/predictions/20260101T000000000000Z").status == 409


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "m"], "belong together"),
        (["--predictions", "p"], "belong together"),
        (["--images", "i"], "belong together"),
        (["--models", "m", "--predictions", "site/inside"], "apart from the images"),
    ],
)
def test_the_command_tells_options_that_do_not_fit(
    tmp_path: Path, pair: Sequence[Path], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    State.create(tmp_path / "state", SECRET)
    words = [str(pair[0] / "inside") if word == "site/inside" else word for word in words]
    options = ["--site", str(pair[0]), "--state", str(tmp_path / "state"), "--study", str(tmp_path), *words]
    assert crossprobe.main(["site", "desk", *options]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
