"""BUS-BRA as its authors publish it becomes a site for each scanner."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clients.data.site import load_site
from simulations.importers.busbra import DataSetError, import_busbra

SCANNERS = ("GE Logiq 7 @10-14MHz", "GE Logiq 5 @10-12MHz", "Toshiba Aplio 300 @12-14 MHz", "U-Systems @10 MHz")
PATIENTS = 16
HEADER = ("ID", "Case", "Histology", "Pathology", "BIRADS", "Device", "Width", "Height", "Side", "BBOX")


def write_table(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "bus_data.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(rows)


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "bus_data.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Noise in the published layout: 16 patients a scanner, with the views l and r or one view s."""
    folder = tmp_path / "BUSBRA"
    for kind in ("Images", "Masks"):
        (folder / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for case in range(1, len(SCANNERS) * PATIENTS + 1):
        for side in "lr" if case % 3 else "s":
            pixels = rng.integers(0, 256, (20, 24), np.uint8)
            Image.fromarray(pixels).save(folder / f"Images/bus_{case:04d}-{side}.png")
            mask = Image.fromarray(np.where(pixels > 127, np.uint8(255), np.uint8(0)))
            mask.save(folder / f"Masks/mask_{case:04d}-{side}.png")
            row = {"ID": f"bus_{case:04d}-{side}", "Case": str(case), "Histology": "cyst", "Pathology": "benign"}
            row |= {"BIRADS": "2", "Device": SCANNERS[(case - 1) // PATIENTS], "Width": "24", "Height": "20"}
            rows.append(row | {"Side": "left", "BBOX": "[1,2,3,4]"})
    write_table(folder, rows)
    for name in ("5-fold-cv.csv", "10-fold-cv.csv", "LICENSE.txt"):
        (folder / name).write_text("as published")
    return folder


def test_every_scanner_becomes_a_site_that_loads_without_findings(published: Path, tmp_path: Path) -> None:
    sites = [load_site(folder) for folder in import_busbra(published, tmp_path / "out")]

    assert [site.config.name for site in sites] == ["ge-logiq5", "ge-logiq7", "toshiba-aplio300", "u-systems"]
    assert [site.config.role for site in sites] == ["source", "source", "target", "target"]
    assert sum(len(site.frames) for site in sites) == len(read_table(published))
    assert {frame.device for frame in sites[1].frames} == {SCANNERS[0]}
    assert {frame.patient for frame in sites[1].frames} == {f"p{case:04d}" for case in range(1, PATIENTS + 1)}


def test_a_target_has_masks_of_its_test_patients_alone_and_some_of_each(published: Path, tmp_path: Path) -> None:
    target = load_site(import_busbra(published, tmp_path / "out")[2])

    assert target.patients("test", labelled=False) == target.patients("train", labelled=True) == []
    assert len(target.patients("test")) >= 4
    assert len(target.patients("train")) >= 4
    assert len(list((target.folder / "masks").iterdir())) == len(target.frames_of("test"))


def test_a_patient_seen_with_two_scanners_is_at_one_site_only(
    published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = read_table(published)
    rows[-1]["Case"] = "1"  # of the first scanner
    write_table(published, rows)

    with caplog.at_level(logging.WARNING):
        sites = [load_site(folder) for folder in import_busbra(published, tmp_path / "out")]

    assert ["p0001" in {frame.patient for frame in site.frames} for site in sites] == [False, True, False, False]
    assert "left out 1 images" in caplog.text


def test_everything_missing_or_senseless_is_reported_together(published: Path, tmp_path: Path) -> None:
    (published / "Images/bus_0001-l.png").unlink()
    (published / "Masks/mask_0002-r.png").unlink()
    rows = read_table(published)
    rows[4]["ID"] = "../bus_0003-l"
    write_table(published, rows)

    with pytest.raises(DataSetError) as caught:
        import_busbra(published, tmp_path / "out")

    assert len(caught.value.problems) == 3
    for part in ("Images/bus_0001-l.png", "Masks/mask_0002-r.png", "bus_data.csv line 6: expected an ID"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_folder_is_told_which_two_layouts_are_known(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"bus_data\.csv .* or index\.csv"):
        import_busbra(tmp_path, tmp_path / "out")
