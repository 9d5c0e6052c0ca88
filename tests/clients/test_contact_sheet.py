"""The page on a folder: what stands out, what it shows, and that it opens no mask of a target."""

import base64
import io
import re
import stat
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from site_folder import cell, good_site, save
from tiny import write_site

from clients.data.contact_sheet import OUTLINE
from clients.data.site import Site, load_site
from clients.data.statistics import Look, look_at, remarks
from common.components import Split
from crossprobe import main


def page(folder: Path, tmp_path: Path, code: int = 0) -> str:
    assert main(["site", "check", str(folder), "--html", str(tmp_path / "page.html")]) == code
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(own)))) for own in found]


def standing_out(site: Site) -> dict[str, set[str]]:
    return {remark.what: {frame.patient for frame in remark.frames} for remark in remarks(look_at(site))}


def one(found: dict[str, set[str]], words: str) -> set[str]:
    return next((patients for what, patients in found.items() if words in what), set())


class Tags(HTMLParser):
    """Every element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_source_is_shown_with_outlines_by_split_and_in_numbers(tmp_path: Path) -> None:
    html = page(write_site(tmp_path / "north", "source"), tmp_path)

    assert "north: a source site with 21 images, without findings" in html
    assert re.findall(r"<h2>(\w+): (\d+) of (\d+) patients", html) == [
        ("train", "6", "6"),
        ("calibrate", "5", "5"),
        ("val", "5", "5"),
        ("test", "5", "5"),
    ]
    shown = pictures(html)
    assert len(shown) >= 21
    assert all((own == OUTLINE).all(-1).any() for own in shown)
    tags = Tags()
    tags.feed(html)
    assert tags.open == []


def test_no_mask_of_a_target_is_opened_for_the_page(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "east", "target")
    opened: list[tuple[str, int]] = []
    watching = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and "/masks/" in str(arguments[0]):
            opened.append((str(arguments[0]), 1))

    sys.addaudithook(hook)
    html = page(folder, tmp_path)
    watching = False

    assert len(opened) == 5  # the check reads the headers of the test patients' masks, once
    assert not any((own == OUTLINE).all(-1).any() for own in pictures(html))


def test_the_page_is_for_its_owner_and_loads_nothing(tmp_path: Path) -> None:
    html = page(write_site(tmp_path / "north", "source"), tmp_path)

    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o600
    assert "default-src 'none'" in html
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html)
    assert "http://" not in html
    assert "https://" not in html
    assert "<script" not in html


def test_what_a_hospital_wrote_is_text_on_the_page_and_nothing_more(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north")
    for row in (0, 1):
        cell("patient", "<script>alert(1)</script>", row)(folder)

    html = page(folder, tmp_path)

    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_folder_with_findings_gets_them_as_a_page(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north")
    for row in range(5):
        cell("frame", "x", row)(folder)

    html = page(folder, tmp_path, code=1)

    assert "north: mend 5 findings" in html
    assert "<h3>bad-frame: 5</h3>" in html
    assert "and 2 more like these" in html
    assert pictures(html) == []


def test_one_patient_under_two_names_stands_out(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "north", "source")
    image = np.asarray(Image.open(folder / "images/scan-north-train-0.png"))
    save(folder / "images/scan-north-test-0.png", np.clip(image.astype(int) + 2, 0, 255).astype(np.uint8))

    found = standing_out(load_site(folder))

    assert one(found, "nearly the same image") >= {"kept-north-train-0", "kept-north-test-0"}


def test_images_that_are_alike_follow_each_other_and_a_patients_own_are_none(site: Site) -> None:
    """A loop's frames are alike by nature, all pairs of them: thousands of such frames are looked at in seconds."""
    plain = look_at(site)[0]

    def look(level: float, patient: str, split: Split = "train") -> Look:
        frame = replace(plain.frame, patient=patient, split=split)
        return replace(plain, thumbnail=np.full((16, 16), level), frame=frame)

    loop = [look(99, "a") for _ in range(1200)]
    seen = [*loop, look(5, "b"), look(40, "c"), look(40, "d"), look(6, "b", "test"), look(40, "e")]
    (found,) = (remark.frames for remark in remarks(seen) if remark.what.startswith("nearly the same image"))
    assert [(frame.patient, frame.split) for frame in found] == [
        ("b", "train"),
        ("b", "test"),
        ("c", "train"),
        ("d", "train"),
        ("e", "train"),
    ]


def test_saturated_black_oversized_and_mixed_images_stand_out(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north")
    bright = np.full((24, 32), 255, np.uint8)
    bright[:4] = 7
    dark = np.zeros((24, 32), np.uint8)
    dark[3, 4] = 200
    save(folder / "images/p1_0.png", bright)
    save(folder / "images/p2_0.png", dark)
    cell("spacing_mm", "4.0", row=4)(folder)
    cell("device", "other", row=6)(folder)

    found = standing_out(load_site(folder))

    assert one(found, "full brightness") == {"p1"}
    assert one(found, "pixels black") == {"p2"}
    assert one(found, "larger or smaller field") == {"p3"}
    assert one(found, "several devices") == {"p4"}
    assert one(found, "nearly the same image") == set()


@pytest.mark.parametrize("role", ["source", "target"])
def test_an_image_in_numbers_is_that_image(tmp_path: Path, role: str) -> None:
    site = load_site(good_site(tmp_path / "north", role))

    look = look_at(site)[4]

    image = np.asarray(Image.open(look.frame.image)) / 255
    assert look.mean == pytest.approx(image.mean(), abs=1e-6)
    assert look.field_mm == 32
    assert look.foreground == (pytest.approx(8 * 12 / (24 * 32)) if role == "source" else None)
    assert look.thumbnail.mean() == pytest.approx(255 * image.mean(), rel=0.05)
