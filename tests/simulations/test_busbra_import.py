"""BUS-BRA becomes three site folders, or nothing."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clients.data.site import load_site
from common.errors import CrossProbeError
from common.files import FolderInUseError
from simulations.importers import busbra
from simulations.importers.busbra import SUBSET_SITES, DataSetError, import_busbra, role_of

PATIENTS = 12
MASKED_AT_TARGET = {"p0000", "p0003", "p0006", "p0009"}


def write_index(source: Path, rows: list[dict[str, str]]) -> None:
    with (source / "index.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A data set of the same layout: 12 patients a scanner, two views of each, noise for images."""
    folder = tmp_path / "busbra"
    rng = np.random.default_rng(0)
    rows = []
    for domain, site in SUBSET_SITES.items():
        for kind in ("images", "masks"):
            (folder / domain / kind).mkdir(parents=True)
        for number in range(PATIENTS):
            patient = f"p{number:04d}"
            has_mask = role_of(site) == "source" or patient in MASKED_AT_TARGET
            for view in ("left", "right"):
                row = {"domain": domain, "file": f"{patient}_{view[0]}.png"}
                row |= {"patient": patient, "device": f"scanner {domain}", "view": view}
                rows.append(row | {"has_mask": str(int(has_mask))})
                pixels = rng.integers(0, 256, (20, 24), np.uint8)
                Image.fromarray(pixels).save(folder / domain / "images" / row["file"])
                if has_mask:
                    mask = np.where(pixels > 127, np.uint8(255), np.uint8(0))
                    Image.fromarray(mask).save(folder / domain / "masks" / row["file"])
    write_index(folder, rows)
    (folder / "LICENSE.txt").write_text("cite it")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_three_sites_are_written_that_load_without_findings(source: Path, tmp_path: Path) -> None:
    folders = import_busbra(source, tmp_path / "out")

    sites = [load_site(folder) for folder in folders]
    assert [site.config.name for site in sites] == ["ge-logiq5", "ge-logiq7", "toshiba-aplio300"]
    assert [site.config.role for site in sites] == ["source", "source", "target"]
    assert [len(site.frames) for site in sites] == [2 * PATIENTS] * 3
    assert not any(site.has_spacing for site in sites)
    assert not any(frame.image.is_symlink() for site in sites for frame in site.frames)
    assert (tmp_path / "out/LICENSE.txt").read_text() == "cite it"


def test_target_patients_with_masks_are_test_and_the_others_train(source: Path, tmp_path: Path) -> None:
    target = load_site(import_busbra(source, tmp_path / "out")[2])

    assert set(target.patients("test", labelled=True)) == MASKED_AT_TARGET
    assert target.patients("test", labelled=False) == []
    assert len(target.patients("train", labelled=False)) == PATIENTS - len(MASKED_AT_TARGET)
    assert target.patients("val") == target.patients("calibrate") == []


def test_the_split_of_source_patients_depends_on_the_seed_alone(source: Path, tmp_path: Path) -> None:
    import_busbra(source, tmp_path / "a", seed=1)
    import_busbra(source, tmp_path / "b", seed=1)
    import_busbra(source, tmp_path / "c", seed=2)

    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_an_out_folder_with_content_is_replaced_only_on_request(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_busbra(source, out)
    (out / "ge-logiq5/site.yaml").write_text("changed")

    with pytest.raises(FolderInUseError, match="found content"):
        import_busbra(source, out)
    assert (out / "ge-logiq5/site.yaml").read_text() == "changed"

    import_busbra(source, out, overwrite=True)
    assert load_site(out / "ge-logiq5").config.name == "ge-logiq5"


def test_what_an_import_did_not_write_is_never_removed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")

    with pytest.raises(FolderInUseError, match=r"thesis\.tex"):
        import_busbra(source, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/thesis.tex").exists()


def test_an_import_that_fails_leaves_the_old_one_and_nothing_half_done(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    import_busbra(source, out)
    before = contents(out)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(busbra, "write_site_files", fail)
    with pytest.raises(CrossProbeError, match=r"disk full\. It is as it was before"):
        import_busbra(source, out, overwrite=True)

    assert contents(out) == before
    assert {path.name for path in tmp_path.iterdir()} == {"busbra", "out"}


def test_an_import_that_is_killed_leaves_no_sites_and_can_be_repeated(source: Path, tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys; from simulations.importers import busbra;"
        "busbra.write_site_files = lambda *_, **__: os.kill(os.getpid(), 9);"
        "busbra.import_busbra(*map(pathlib.Path, sys.argv[1:]))"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", script, str(source), str(out)]
    killed = subprocess.run(command, cwd=Path(busbra.__file__).parents[2], check=False)

    assert killed.returncode == -9
    assert not out.exists()
    assert len(import_busbra(source, out)) == 3


def test_everything_missing_is_reported_together(source: Path, tmp_path: Path) -> None:
    (source / "ge_logiq7/images/p0001_l.png").unlink()
    (source / "ge_logiq5/masks/p0002_r.png").unlink()
    (source / "LICENSE.txt").unlink()

    with pytest.raises(DataSetError) as caught:
        import_busbra(source, tmp_path / "out")

    assert len(caught.value.problems) == 3
    for part in ("images/p0001_l.png", "masks/p0002_r.png", "LICENSE.txt"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("domain", "ge_logiq9", "expected a domain"),
        ("file", "../p0000_l.png", "expected the name of a file"),
        ("file", "", "expected the name of a file"),
        ("has_mask", "0", "expected has_mask 1"),
    ],
)
def test_a_row_that_makes_no_sense_is_reported(
    source: Path, tmp_path: Path, column: str, value: str, problem: str
) -> None:
    with (source / "index.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0][column] = value
    write_index(source, rows)

    with pytest.raises(DataSetError, match=f"index.csv line 2: {problem}"):
        import_busbra(source, tmp_path / "out")


@pytest.mark.parametrize("index", [None, "", "domain,file\n", "other,columns\n"])
def test_a_folder_without_the_index_is_no_data_set(source: Path, tmp_path: Path, index: str | None) -> None:
    (source / "index.csv").unlink()
    if index is not None:
        (source / "index.csv").write_text(index)

    with pytest.raises(DataSetError, match=r"index\.csv"):
        import_busbra(source, tmp_path / "out")


def test_an_index_that_a_spreadsheet_saved_in_its_own_code_is_no_traceback(source: Path, tmp_path: Path) -> None:
    index = source / "index.csv"
    index.write_bytes(index.read_bytes().replace(b"GE", b"\xc4", 1) + b"\xe4,\n")

    with pytest.raises(DataSetError, match=r"index\.csv: expected the data set's own CSV in UTF-8"):
        import_busbra(source, tmp_path / "out")


def test_a_labelled_scanner_can_play_a_target_whose_training_patients_have_no_mask(
    source: Path, tmp_path: Path
) -> None:
    usual = load_site(import_busbra(source, tmp_path / "usual")[0])
    folders = import_busbra(source, tmp_path / "out", targets=["ge-logiq5"])
    played = load_site(folders[0])
    assert (played.config.name, played.config.role) == ("ge-logiq5", "target")
    assert played.patients("train") == usual.patients("train")
    assert played.patients("train", labelled=True) == []
    others = {patient for split in ("calibrate", "val", "test") for patient in usual.patients(split)}
    assert set(played.patients("test", labelled=True)) == others
    masks = {path.name for path in (folders[0] / "masks").iterdir()}
    assert masks == {f"{patient}_{view}.png" for patient in others for view in "lr"}
    assert contents(folders[1]) == contents(tmp_path / "usual" / "ge-logiq7")


def test_a_source_with_few_labels_keeps_so_many_training_patients_and_everything_else(
    source: Path, tmp_path: Path
) -> None:
    import_busbra(source, tmp_path / "usual", targets=["ge-logiq5"])
    import_busbra(source, tmp_path / "few", targets=["ge-logiq5"], labelled=3)
    import_busbra(source, tmp_path / "other", targets=["ge-logiq5"], labelled=3, seed=1)
    usual, few, other = (load_site(tmp_path / out / "ge-logiq7") for out in ("usual", "few", "other"))
    assert len(few.patients("train")) == 3
    assert set(few.patients("train")) < set(usual.patients("train"))
    assert few.patients("train") != other.patients("train")
    for split in ("calibrate", "val", "test"):
        assert few.patients(split) == usual.patients(split)
    for target in ("ge-logiq5", "toshiba-aplio300"):
        assert contents(tmp_path / "few" / target) == contents(tmp_path / "usual" / target)
