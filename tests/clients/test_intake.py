"""A folder off a scanner becomes a site without findings, and nobody's name comes along."""

import io
import json
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recordings import BIRTH_DATE, PATIENT_ID, PATIENT_NAME, dicom, video
from screens import HEIGHT, WIDTH, convex, linear, speckle, with_text

from clients.data.formats import open_recording
from clients.data.formats.recording import Pixels, Recording
from clients.data.images import PictureError
from clients.data.intake import intake
from clients.data.intake.before_after import BeforeAfter
from clients.data.intake.identity import pseudonym, pseudonym_key
from clients.data.intake.intake import Rules, take_in
from clients.data.intake.sources import find_sources
from clients.data.site import check_site, load_site
from common.errors import SiteStateError
from crossprobe import main


def test_a_key_is_made_once_kept_private_and_gives_names_that_do_not_tell(tmp_path: Path) -> None:
    key = pseudonym_key(tmp_path / "key")

    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert pseudonym_key(tmp_path / "key") == key
    assert pseudonym(key, "patient", "4711 ") == pseudonym(key, "patient", "4711")
    assert pseudonym(key, "patient", "4711") != pseudonym(pseudonym_key(tmp_path / "other"), "patient", "4711")
    assert pseudonym(key, "patient", "4711") != pseudonym(key, "video", "4711")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(SiteStateError, match="chmod 600"):
        pseudonym_key(tmp_path / "key")
    (tmp_path / "other").write_bytes(b"short")
    with pytest.raises(SiteStateError, match="expected 32 bytes, found 5"):
        pseudonym_key(tmp_path / "other")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """What a hospital has: DICOM of three patients, a loop, screenshots; names in every place."""
    folder = tmp_path / "archive/Mueller_Anna"
    folder.mkdir(parents=True)
    loop = np.stack([with_text(speckle(linear(), seed)) for seed in (0, 0, 5, 9)])
    dicom(folder / "Mueller_Anna_IM0001", loop, spacing_mm=0.2)
    dicom(folder / "IM0002.dcm", with_text(speckle(convex(), 2))[None], spacing_mm=0.2, PatientID="HOSP-2")
    dicom(
        folder / "IM0003.dcm", with_text(speckle(convex(), 3))[None], spacing_mm=0.2, PatientID="HOSP-3", syntax="rle"
    )
    (folder / "report.txt").write_text("findings of Mueller, Anna")
    return folder.parent


def known_key(path: Path, byte: bytes = b"k") -> None:
    """A key with the same names, and so splits, each time: with a random one, few patients may all miss `train`."""
    path.write_bytes(byte * 32)
    path.chmod(0o600)


def everything(folder: Path) -> bytes:
    """All names and all bytes of a folder, pictures also as text chunks."""
    parts = [str(path.relative_to(folder)).encode() + path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return b"\n".join(parts)


def test_a_folder_of_dicom_becomes_a_site_in_which_nobody_is_named(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'Klinik "Süd" 😀'
    known_key(out.with_name(f"{out.name}.key"))

    assert main(["site", "new", str(archive), str(out), "--role", "target"]) == 0

    site = load_site(out)
    assert (site.config.name, site.config.role) == ("klinik-sud", "target")
    assert len(site.frames) == 3 + 2
    assert len({frame.patient for frame in site.frames}) == 3
    assert {frame.spacing_mm for frame in site.frames} == {0.2}
    assert {frame.device for frame in site.frames} == {"Maker Model 5"}
    content = everything(out)
    for secret in (*PATIENT_NAME.split("^"), PATIENT_ID, BIRTH_DATE, "HOSP", "IM000", "report"):
        assert secret.lower().encode() not in content.lower()
    for frame in site.frames:
        pixels = np.asarray(Image.open(frame.image))
        written = with_text(np.zeros((HEIGHT, WIDTH), np.uint8)) > 0
        assert not pixels[written & ~linear() & ~convex()].any()
        assert set(Image.open(frame.image).info) == set()
    shown = capsys.readouterr().out
    assert "6 frames seen, 5 taken" in shown
    assert "1 frames left out because they show what the one before shows" in shown
    assert "unknown-format: Mueller_Anna/report.txt" in shown
    assert "NOT all text and marks are found" in shown


def test_the_pictures_before_and_after_lie_beside_the_site_for_its_owner_alone(archive: Path, tmp_path: Path) -> None:
    known_key(tmp_path / "our-site.key")
    assert main(["site", "new", str(archive), str(tmp_path / "our-site"), "--role", "target"]) == 0

    sheet = tmp_path / "our-site-before-after.png"
    assert stat.S_IMODE(sheet.stat().st_mode) == 0o600
    pixels = np.asarray(Image.open(io.BytesIO(sheet.read_bytes())))
    assert (pixels == (214, 40, 40)).all(-1).any()
    assert not list((tmp_path / "our-site").rglob("*before*"))


def test_the_same_key_gives_a_patient_the_same_name_in_the_next_import(archive: Path, tmp_path: Path) -> None:
    common = ["--role", "target", "--name", "our-site", "--key", str(tmp_path / "key")]
    known_key(tmp_path / "key")
    known_key(tmp_path / "other", b"o")
    for out in ("a", "b"):
        assert main(["site", "new", str(archive), str(tmp_path / out), *common]) == 0
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    assert main(["site", "new", str(archive), str(tmp_path / "c"), *common[:-1], str(tmp_path / "other")]) == 0
    assert everything(tmp_path / "c") != everything(tmp_path / "a")


def screenshots(folder: Path, masks: Path | None) -> None:
    folder.mkdir()
    if masks is not None:
        masks.mkdir()
    for number in range(20):
        Image.fromarray(with_text(speckle(linear(), number))).save(folder / f"case{number // 2}_{number % 2}.jpg")
        if masks is not None:
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[100:140, 120:180] = 1
            Image.fromarray(mask).save(masks / f"case{number // 2}_{number % 2}.png")


@pytest.mark.parametrize("place", ["masks", "shots/masks"])
def test_screenshots_get_their_patients_by_a_pattern_and_their_masks_from_a_folder(place: str, tmp_path: Path) -> None:
    screenshots(tmp_path / "shots", tmp_path / place)
    known_key(tmp_path / "north.key")
    command = [
        "site",
        "new",
        str(tmp_path / "shots"),
        str(tmp_path / "north"),
        "--role",
        "source",
        "--spacing-mm",
        "0.2",
    ]

    assert main([*command, "--patient-pattern", r"(case\d+)_", "--masks", str(tmp_path / place)]) == 0

    site = load_site(tmp_path / "north")
    assert len({frame.patient for frame in site.frames}) == 10
    assert all(frame.mask is not None and frame.spacing_mm == 0.2 for frame in site.frames)
    assert b"case" not in everything(tmp_path / "north")


def test_images_taken_in_again_leave_the_hospitals_policy_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    screenshots(tmp_path / "shots", None)
    command = ["site", "new", str(tmp_path / "shots"), str(tmp_path / "north"), "--overwrite"]
    command += ["--patient-pattern", r"(case\d+)_", "--spacing-mm", "0.2"]
    assert main([*command, "--role", "target"]) == 0
    settings = tmp_path / "north/site.yaml"
    settings.write_text(settings.read_text() + "policy: {min_patients: 7, privacy_required: true}\n")

    assert main([*command, "--role", "target"]) == 0

    policy = load_site(tmp_path / "north").config.policy
    assert (policy.min_patients, policy.privacy_required) == (7, True)
    capsys.readouterr()
    assert main([*command, "--role", "target", "--name", "other"]) == 1
    assert "expected the settings of other, a target site" in capsys.readouterr().err
    settings.write_text("policy: {min_patient: 7}\n")
    assert main([*command, "--role", "target"]) == 1
    assert "min_patient" in capsys.readouterr().err
    assert settings.read_text() == "policy: {min_patient: 7}\n"


def test_a_table_gives_patients_splits_and_masks(tmp_path: Path) -> None:
    screenshots(tmp_path / "shots", tmp_path / "masks")
    (tmp_path / "masks").rename(tmp_path / "shots/m")
    rows = [
        f"case{n // 2}_{n % 2}.jpg;m/case{n // 2}_{n % 2}.png;P{n // 2};0,25;{'test' if n < 4 else 'Train'}"
        for n in range(20)
    ]
    (tmp_path / "list.csv").write_text("\n".join(["image;mask;patient;spacing_mm;split", *rows]))
    command = ["site", "new", str(tmp_path / "shots"), str(tmp_path / "north"), "--role", "source"]

    assert main([*command, "--table", str(tmp_path / "list.csv")]) == 0

    site = load_site(tmp_path / "north")
    assert (len(site.patients("test")), len(site.patients("train"))) == (2, 8)
    assert {frame.spacing_mm for frame in site.frames} == {0.25}


def test_a_loop_gives_frames_of_one_video_and_not_more_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "loops").mkdir()
    for patient in "ab":
        video(
            tmp_path / f"loops/{patient}_1.avi", np.stack([speckle(linear(), seed + ord(patient)) for seed in range(8)])
        )
    known_key(tmp_path / "east.key")
    command = ["site", "new", str(tmp_path / "loops"), str(tmp_path / "east"), "--role", "target", "--most-frames", "3"]

    assert main([*command, "--patient-pattern", r"([ab])_"]) == 0

    rows = (tmp_path / "east/manifest.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 3
    assert len({row.split(",")[3] for row in rows[1:]}) == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--role", "target"], "no-patient"),
        (["--role", "source", "--patient-pattern", r"(case\d+)_"], "no-mask"),
        (["--role", "target", "--patient-pattern", "case"], "one group"),
        (["--role", "target", "--patient-pattern", "(case"], "no regular expression"),
        (["--role", "target", "--masks", "/none"], "folder of masks"),
        (["--role", "target", "--spacing-mm", "nan"], "--spacing-mm"),
        (["--role", "target", "--name", "Our Site"], "lower-case"),
        (["--role", "target", "--most-frames", "0"], "--most-frames"),
    ],
)
def test_what_cannot_be_taken_in_is_explained_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    screenshots(tmp_path / "shots", None)

    assert main(["site", "new", str(tmp_path / "shots"), str(tmp_path / "north"), *arguments]) in (1, 2)

    shown = capsys.readouterr().err
    assert reason in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "north").exists()


def test_the_source_is_neither_within_the_new_folder_nor_around_it(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (archive / "site", archive, archive.parent):
        assert main(["site", "new", str(archive), str(out), "--role", "target"]) == 1
        assert "apart from the images" in capsys.readouterr().err


def test_a_file_that_fails_midway_is_on_no_sheet_and_in_no_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its second reading, which takes the frames in, fails after the first of them: a share that went away."""
    (tmp_path / "loops").mkdir()
    frames = {name: np.stack([speckle(linear(), seed + ord(name)) for seed in range(4)]) for name in "ab"}
    for name, own in frames.items():
        video(tmp_path / f"loops/{name}_1.avi", with_text(own[0])[None] if name == "a" else own)
    readings = []

    def opened(file: Path) -> Recording:
        recording = open_recording(file)

        def failing() -> Iterator[Pixels]:
            readings.append(file)
            for index, frame in enumerate(recording.frames()):
                if len(readings) == 2 and index == 1:
                    raise PictureError("unreadable", "expected a frame, found none", "Copy it again")
                yield frame

        return replace(recording, frames=failing) if file.name.startswith("b") else recording

    monkeypatch.setattr(intake, "open_recording", opened)
    rules = Rules("target", spacing_mm=0.2)
    sources = find_sources(tmp_path / "loops", pattern=r"([ab])_")
    sheet, alone = BeforeAfter(), BeforeAfter()
    removed = take_in(sources, tmp_path / "both", name="both", rules=rules, key=b"k" * 32, sheet=sheet)
    first = replace(sources, sources=sources.sources[:1])
    expected = take_in(first, tmp_path / "one", name="one", rules=rules, key=b"k" * 32, sheet=alone)

    assert len(readings) == 2
    assert [finding.code for finding in removed.findings] == ["unreadable"]
    assert len(list((tmp_path / "both/images").iterdir())) == 1
    for pictures, name in ((sheet, "both.png"), (alone, "one.png")):
        pictures.write(tmp_path / name)
    assert (tmp_path / "both.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    assert replace(removed, files=1, findings=[]) == expected


def test_counts_are_there_for_machines(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known_key(tmp_path / "our-site.key")
    assert main(["site", "new", str(archive), str(tmp_path / "our-site"), "--role", "target", "--json"]) == 0

    content = json.loads(capsys.readouterr().out)
    assert content["ok"]
    assert content["removed"]["pixels_blanked"] > 1000
    assert content["removed"]["patients_renamed"] == 3
    assert check_site(tmp_path / "our-site")[1] == []
    assert re.fullmatch(r"[0-9a-f]{12}", next(iter(load_site(tmp_path / "our-site").frames)).patient)


def test_images_of_a_header_that_names_nobody_are_not_taken_for_one_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "archive").mkdir()
    dicom(tmp_path / "archive" / "a.dcm", speckle(linear(), 0)[None], PatientID="ANONYMOUS")
    assert main(["site", "new", str(tmp_path / "archive"), str(tmp_path / "north"), "--role", "target"]) == 1
    assert "placeholder-patient" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--sheet", "--all", "--key"])
@pytest.mark.parametrize("place", ["shots/case0_0.jpg", "north/manifest.csv"])
def test_nothing_is_written_over_what_was_given_or_into_the_site(
    option: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    screenshots(tmp_path / "shots", None)
    before = everything(tmp_path / "shots")
    words = ["site", "new", str(tmp_path / "shots"), str(tmp_path / "north"), "--role", "target"]
    assert main([*words, option, str(tmp_path / place)]) == 1
    assert "expected a place outside" in capsys.readouterr().err
    assert everything(tmp_path / "shots") == before
    assert not (tmp_path / "north").exists()


def test_the_report_is_told_though_the_sheet_cannot_be_written_and_holds_every_finding(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known_key(tmp_path / "north.key")
    words = ["site", "new", str(archive), str(tmp_path / "north"), "--role", "target"]
    assert main([*words, "--sheet", str(tmp_path / "none" / "s.png"), "--all", str(tmp_path / "all.txt")]) == 1
    found = capsys.readouterr()
    assert "NOT all text and marks are found" in found.out
    assert "s.png" in found.err
    assert "report.txt" in (tmp_path / "all.txt").read_text()
