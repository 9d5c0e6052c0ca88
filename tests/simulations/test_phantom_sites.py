"""Simulated sites: in the format of real ones, reproducible, and rendered once."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.data.frames import read_image, read_mask
from clients.data.site import load_site
from common.files import FolderInUseError
from crossprobe import main
from simulations.phantom import formation, sites
from simulations.phantom.devices import PROFILES
from simulations.phantom.formation import render_frame
from simulations.phantom.sites import RENDERING, write_phantom_site

SMALL: dict[str, Any] = {
    "name": "north",
    "role": "source",
    "profile": "telemed_like",
    "seed": 5,
    "first_patient": 7,
    "patients": {"train": 2, "test": 1},
    "frames_per_patient": 2,
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_source_site_loads_with_patients_splits_masks_and_spacing(tmp_path: Path) -> None:
    site = load_site(write_phantom_site(tmp_path / "north", **SMALL))

    assert (site.config.name, site.config.role) == ("north", "source")
    assert site.patients("train", labelled=True) == ["p0007", "p0008"]
    assert site.patients("test", labelled=True) == ["p0009"]
    assert [frame.frame for frame in site.frames] == [0, 1] * 3
    assert {frame.video for frame in site.frames} == {"p0007", "p0008", "p0009"}
    assert {frame.spacing_mm for frame in site.frames} == {PROFILES["telemed_like"].spacing_mm}


def test_files_hold_the_rendered_frame(tmp_path: Path) -> None:
    frame = load_site(write_phantom_site(tmp_path / "north", **SMALL)).frames[3]

    rendered = render_frame(seed=5, patient=8, frame=1, profile=PROFILES["telemed_like"])
    np.testing.assert_array_equal(np.round(read_image(frame) * 255), rendered.image)
    np.testing.assert_array_equal(read_mask(frame), rendered.mask > 0)


def test_a_target_site_has_masks_of_its_test_patients_only(tmp_path: Path) -> None:
    request = SMALL | {"role": "target", "patients": {"test": 1, "val": 1, "train": 1}}
    site = load_site(write_phantom_site(tmp_path / "north", **request))

    assert {path.name for path in (tmp_path / "north/masks").iterdir()} == {
        "p0009_000.png", "p0009_001.png",
    }  # fmt: skip
    assert site.patients("test", labelled=True) == ["p0009"]
    assert site.patients("train", labelled=True) == site.patients("val", labelled=True) == []


def test_several_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    write_phantom_site(tmp_path / "one", **SMALL)
    write_phantom_site(tmp_path / "two", **SMALL, workers=2, progress=lambda *call: calls.append(call))

    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert calls == [(done, 6) for done in range(1, 7)]


def test_the_same_request_is_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_phantom_site(tmp_path / "north", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "north").rglob("*")}
    monkeypatch.setattr(formation, "render_frame", None)

    write_phantom_site(tmp_path / "north", **SMALL)

    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "north").rglob("*")}


@pytest.mark.parametrize("change", [{"seed": 6}, {"frames_per_patient": 1}, {"name": "south"}])
def test_another_request_replaces_a_folder_only_when_allowed(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = write_phantom_site(tmp_path / "north", **SMALL)
    before = contents(folder)

    with pytest.raises(FolderInUseError):
        write_phantom_site(folder, **SMALL | change)
    assert contents(folder) == before

    write_phantom_site(folder, **SMALL | change, overwrite=True)
    assert contents(folder) != before


def test_changed_rendering_code_is_another_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_phantom_site(tmp_path / "north", **SMALL)
    monkeypatch.setattr(sites, "RENDERING", RENDERING[:-1])

    with pytest.raises(FolderInUseError):
        write_phantom_site(folder, **SMALL)


def test_the_code_of_a_request_covers_every_module_that_renders() -> None:
    script = (
        "import sys, simulations.phantom.formation, simulations.phantom.population;"
        "print(*(m.rpartition('.')[2] for m in sys.modules if m.startswith('simulations.phantom.')))"
    )
    root = Path(sites.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == sorted(RENDERING)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_rendering_leaves_no_folder(tmp_path: Path, workers: int) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom_site(tmp_path / "north", **SMALL, progress=stop, workers=workers)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"profile": "unheard_of"},
        {"name": "North Hospital"},
        {"role": "both"},
        {"patients": {"training": 3}},
        {"patients": {"train": -1}},
        {"frames_per_patient": 0},
        {"seed": -1},
    ],
)
def test_a_request_without_sense_is_refused_before_anything_is_written(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|SiteConfig"):
        write_phantom_site(tmp_path / "north", **SMALL | change)
    assert list(tmp_path.iterdir()) == []


def test_phantom_sites_carry_the_names_that_they_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--train", "2", "--calibrate", "0", "--val", "0", "--test", "0", "--frames", "1"]
    assert main(["phantom", str(tmp_path), "--source", "source=lumify_like", "--target", "telemed_like", *few]) == 0
    made = {path.name: load_site(path).config for path in tmp_path.iterdir()}
    assert {name: (config.name, config.role) for name, config in made.items()} == {
        "source": ("source", "source"),
        "target-2-telemed-like": ("target-2-telemed-like", "target"),
    }


@pytest.mark.parametrize("text", ["=lumify_like", "North=lumify_like", "a/b=lumify_like", "north=", "north", "north=x"])
def test_a_phantom_without_a_profile_or_a_possible_name_is_refused(tmp_path: Path, text: str) -> None:
    assert main(["phantom", str(tmp_path), "--source", text]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "source-1-lumify-like"])
def test_two_phantoms_of_one_name_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = "lumify_like" if name.startswith("source") else f"{name}=lumify_like"
    assert main(["phantom", str(tmp_path), "--source", first, "--target", f"{name}=lumify_like"]) == 1
    assert f"found {name} twice" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
