"""What is found in a folder off a scanner: every image with its own mask, and nothing lost without a word."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clients.data.findings import SiteFolderError
from clients.data.intake.sources import find_sources
from clients.data.pseudonyms import placeholder
from common.errors import CrossProbeError


def test_a_table_names_each_image_once_however_it_writes_its_path(tmp_path: Path) -> None:
    (tmp_path / "shots").mkdir()
    for name in "ab":
        (tmp_path / "shots" / f"{name}.png").write_bytes(b"")
    table = tmp_path / "list.csv"
    table.write_text(f"image;patient\n./a.png;P1\n{tmp_path}/shots/b.png;P2\n")
    assert [(source.name, source.patient) for source in find_sources(tmp_path / "shots", table=table).sources] == [
        ("a.png", "P1"),
        ("b.png", "P2"),
    ]
    for again in ("a.png", "x/../a.png"):  # of two patients: whose is it?
        (tmp_path / "shots" / "x").mkdir(exist_ok=True)
        table.write_text(f"image;patient\na.png;P1\nb.png;P2\n{again};P3\n")
        with pytest.raises(SiteFolderError) as caught:
            find_sources(tmp_path / "shots", table=table)
        (finding,) = caught.value.findings
        assert (finding.code, finding.where) == ("duplicate-row", "list.csv line 4")
        assert "found it in line 2 too" in finding.message


def test_a_row_without_an_image_is_found_and_not_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "list.csv").write_text("image,patient\na.png,P1\n,P2\n")
    with pytest.raises(SiteFolderError) as caught:
        find_sources(tmp_path, table=tmp_path / "list.csv")
    (finding,) = caught.value.findings
    assert (finding.code, finding.where) == ("missing-image", "list.csv line 3")
    assert "found an empty cell" in finding.message


def numbered(folder: Path, names: list[str]) -> None:
    """Empty files of these names: nothing opens them before an intake does."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize("suffix", ["", ".png"])
def test_files_named_by_numbers_keep_their_own_masks(suffix: str, tmp_path: Path) -> None:
    names = [f"1.2.840.77.{number}" for number in range(3)]
    numbered(tmp_path / "shots", names)
    (tmp_path / "masks").mkdir()
    for number, name in enumerate(names):
        Image.fromarray(np.eye(8, k=number, dtype=np.uint8)).save(tmp_path / "masks" / f"{name}{suffix}", "PNG")
    found = find_sources(tmp_path / "shots", masks=tmp_path / "masks")
    assert found.unused_masks == ()
    for number, source in enumerate(found.sources):
        assert source.mask is not None
        (mask,) = source.mask((1, 8, 8))
        assert (mask == np.eye(8, k=number, dtype=bool)).all()


def test_one_mask_for_two_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    for name in ("images/a.png", "images/a.bmp", "masks/a.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CrossProbeError, match=r"one mask, a\.png, for two images"):
        find_sources(tmp_path / "images", masks=tmp_path / "masks")
    (tmp_path / "masks" / "a.bmp.png").write_bytes(b"")
    found = find_sources(tmp_path / "images", masks=tmp_path / "masks").sources
    assert len(found) == 2
    assert all(source.mask is not None for source in found)


def test_two_masks_for_one_image_are_refused_and_one_for_none_is_named(tmp_path: Path) -> None:
    numbered(tmp_path / "shots", ["case1.dcm"])
    numbered(tmp_path / "masks", ["case1.png", "case9.png"])
    assert find_sources(tmp_path / "shots", masks=tmp_path / "masks").unused_masks == ("case9.png",)
    numbered(tmp_path / "masks", ["case1.tif"])
    with pytest.raises(CrossProbeError, match=r"found case1\.png, case1\.tif"):
        find_sources(tmp_path / "shots", masks=tmp_path / "masks")


def test_what_may_hold_images_and_is_not_walked_into_is_named(tmp_path: Path) -> None:
    numbered(tmp_path / "shots", ["a.png", ".trash/b.png", "DICOMDIR"])
    numbered(tmp_path / "nas", ["c.png"])
    (tmp_path / "shots" / "2023").symlink_to(tmp_path / "nas")
    (tmp_path / "shots" / "gone.png").symlink_to(tmp_path / "nowhere")
    found = find_sources(tmp_path / "shots")
    assert [source.name for source in found.sources] == ["a.png"]
    named = [(finding.code, finding.where) for finding in found.findings]
    assert named == [("linked-folder", "2023"), ("no-file", "gone.png")]


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbered(tmp_path / "shots", ["a.png", "locked/b.png"])
    scan = os.scandir

    def denied(place: str) -> Iterator[os.DirEntry[str]]:
        if str(place).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr("os.scandir", denied)
    (finding,) = find_sources(tmp_path / "shots").findings
    assert (finding.code, finding.where) == ("unreadable-folder", "locked")


def test_every_row_of_a_table_is_taken_or_refused(tmp_path: Path) -> None:
    numbered(tmp_path, ["a.png", ".hidden/b.png"])
    (tmp_path / "list.csv").write_text("image;patient\na.png;P1\n.hidden/b.png;P2\n")
    found = find_sources(tmp_path, table=tmp_path / "list.csv", masks=None)
    assert [source.name for source in found.sources] == [".hidden/b.png", "a.png"]


def test_an_umlaut_is_found_however_it_is_written(tmp_path: Path) -> None:
    numbered(tmp_path, [unicodedata.normalize("NFD", "Größe.png")])
    (tmp_path / "list.csv").write_text(f"image;patient\n{unicodedata.normalize('NFC', 'Größe.png')};P1\n")
    (source,) = find_sources(tmp_path, table=tmp_path / "list.csv").sources
    assert source.file.exists()


@pytest.mark.parametrize(
    ("patient", "header", "stands"),
    [
        ("ANONYMOUS", False, True),
        ("0000", True, True),
        ("0", False, False),
        ("1,23457E+11", False, True),
        ("P12", True, False),
    ],
)
def test_an_id_that_several_people_may_have_is_none(patient: str, header: bool, stands: bool) -> None:
    assert bool(placeholder(patient, header=header)) is stands
