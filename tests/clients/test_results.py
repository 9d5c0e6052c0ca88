"""Predictions in the form that their images came in, read back by the readers that people have, and the table."""

import csv
import errno
import re
import sys
from pathlib import Path

import av
import highdicom
import nibabel
import numpy as np
import pytest
from finished import Finished
from PIL import Image
from pydicom import dcmread
from pydicom.uid import generate_uid
from recordings import PATIENT_ID, dicom, frame, video

from clients.data import formats
from clients.inputs import Input
from clients.predict import OUTLINE, TABLE, Frames, predict, segment
from clients.released import Model, load_model
from clients.results import WRITERS, masks
from clients.results.summary import LOOK_AGAIN_DICE, row_of, write_rows
from clients.results.video import OverlayVideo
from common.errors import RunError
from common.release import RELEASE
from crossprobe import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(finished: Finished) -> Model:
    return load_model(finished.run)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    return folder


def loop(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.stack([frame(seed, height, width) for seed in range(count)])


def drawn(out: Path, pattern: str) -> np.ndarray:
    """The masks that were written as PNG, bool [F, H, W]."""
    return np.stack([np.asarray(Image.open(path)) > 0 for path in sorted((out / "masks").glob(pattern))])


ULTRASOUND_STILL = "1.2.840.10008.5.1.4.1.1.6.1"


def archived(path: Path, frames: np.ndarray, **tags: object) -> Path:
    uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    return dicom(path, frames, **(uids | tags))


@pytest.mark.parametrize("count", [1, 3])
def test_dicom_gets_a_segmentation_that_refers_to_it_frame_by_frame(
    model: Model, scans: Path, tmp_path: Path, count: int
) -> None:
    source = dcmread(archived(scans / "loop.dcm", loop(count)))

    outcome = predict(model, scans, tmp_path / "out")

    assert outcome.problems == ()
    file = tmp_path / "out/segmentations/loop.dcm.seg.dcm"
    expected = drawn(tmp_path / "out", "loop*")
    assert expected.any()
    found = highdicom.seg.segread(file)
    assert found.segmentation_type.value == "BINARY"
    pixels = found.get_pixels_by_source_frame(source.SOPInstanceUID, list(range(1, count + 1)))
    assert (pixels[..., 0].astype(bool) == expected).all()
    plain = dcmread(file)
    assert (plain.pixel_array.reshape(count, 48, 64).astype(bool) == expected).all()
    assert (plain.Modality, plain.PatientID, plain.StudyInstanceUID) == ("SEG", PATIENT_ID, source.StudyInstanceUID)
    assert plain.SeriesInstanceUID != source.SeriesInstanceUID
    assert plain.SegmentSequence[0].SegmentLabel == model.study.name
    (reference,) = plain.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert reference.ReferencedSOPClassUID == source.SOPClassUID
    assert plain.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [0.2, 0.2]
    places = [own.PlanePositionSequence[0].ImagePositionPatient for own in plain.PerFrameFunctionalGroupsSequence]
    assert places == [[0, 0, number] for number in range(count)]
    assert plain.FrameOfReferenceUID not in (None, source.get("FrameOfReferenceUID"))


def test_a_segmentation_of_a_still_refers_to_no_frame(model: Model, scans: Path, tmp_path: Path) -> None:
    """A scanner may write that its still has one frame; a reference to a frame is for multi-frame objects alone."""
    archived(scans / "still.dcm", loop(1), SOPClassUID=ULTRASOUND_STILL)

    assert predict(model, scans, tmp_path / "out").problems == ()

    (group,) = dcmread(tmp_path / "out/segmentations/still.dcm.seg.dcm").PerFrameFunctionalGroupsSequence
    source = group.DerivationImageSequence[0].SourceImageSequence[0]
    assert (source.ReferencedSOPClassUID, "ReferencedFrameNumber" in source) == (ULTRASOUND_STILL, False)


def test_dicom_that_nothing_can_refer_to_keeps_its_masks_and_is_named(
    model: Model, scans: Path, tmp_path: Path
) -> None:
    dicom(scans / "loose.dcm", loop(2))

    outcome = predict(model, scans, tmp_path / "out")

    assert "loose.dcm: no-dicom-reference: expected StudyInstanceUID, SeriesInstanceUID" in outcome.problems[0]
    assert len(outcome.rows) == 2
    assert drawn(tmp_path / "out", "loose*").shape == (2, 48, 64)
    assert not (tmp_path / "out/segmentations").exists()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_gets_nifti_of_its_shape_and_place(model: Model, scans: Path, tmp_path: Path, suffix: str) -> None:
    affine = np.diag([0.2, 0.2, 1.0, 1.0])
    affine[:3, 3] = 5, -7, 11
    given = nibabel.Nifti1Image(loop(3).transpose(2, 1, 0)[:, :, None, :], affine)
    given.header.set_xyzt_units("mm", "sec")
    nibabel.save(given, scans / f"volume{suffix}")

    outcome = predict(model, scans, tmp_path / "out")

    assert outcome.problems == ()
    found = nibabel.load(tmp_path / "out/segmentations/volume.seg.nii.gz")
    assert found.shape == (64, 48, 1, 3)
    assert np.allclose(found.affine, affine)
    assert found.header.get_xyzt_units() == ("mm", "sec")
    expected = drawn(tmp_path / "out", "volume*")
    assert expected.any()
    assert (np.asarray(found.dataobj)[:, :, 0].transpose(2, 1, 0).astype(bool) == expected).all()


def test_a_header_that_no_file_can_be_made_for_costs_that_file_alone(model: Model, scans: Path, tmp_path: Path) -> None:
    given = nibabel.Nifti1Image(loop(1)[0].T, np.diag([0.2, 0.2, 1.0, 1.0]))
    given.header["quatern_b"] = 7  # no rotation has it
    (scans / "turned.nii").write_bytes(given.header.binaryblock + bytes(4) + loop(1)[0].tobytes())
    Image.fromarray(loop(1)[0]).save(scans / "still.png")

    outcome = predict(model, scans, tmp_path / "out")

    assert any("turned.nii: no-result-file: expected an input that a .seg file" in line for line in outcome.problems)
    assert {"still.png", "turned.nii.png"} <= {row.image for row in outcome.rows}
    assert (tmp_path / "out/results.csv").exists()


@pytest.mark.parametrize("name", ["empty.avi", "empty.nii"])
def test_a_file_of_no_frames_is_named_and_is_not_done(
    model: Model, scans: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.endswith("avi"):
        video(scans / name, loop(2))
    else:
        nibabel.save(nibabel.Nifti1Image(loop(1)[0].T, np.diag([0.2, 0.2, 1.0, 1.0])), scans / name)
    monkeypatch.setattr(Frames, "__iter__", lambda self: iter(()))

    with pytest.raises(RunError, match="no-frames: expected an image or a loop, found no frame"):
        segment(model, [Input(scans / name, name, 0.2)], tmp_path / "out")


@pytest.mark.parametrize(("name", "height", "width"), [("loop.mp4", 48, 64), ("loop.avi", 50, 66)])
def test_a_video_gets_a_video_with_the_outline_at_its_rate(
    model: Model, scans: Path, tmp_path: Path, name: str, height: int, width: int
) -> None:
    video(scans / name, loop(4, height, width))

    predict(model, scans, tmp_path / "out")

    with av.open(str(tmp_path / f"out/overlays/{name}.mp4")) as found:
        assert found.streams.video[0].average_rate == 10
        pictures = [picture.to_ndarray(format="rgb24").astype(int) for picture in found.decode(video=0)]
    stills = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out/overlays").glob("*.png"))]
    assert len(pictures) == len(stills) == 4
    outlined = np.stack([(still == OUTLINE).all(-1) for still in stills])
    assert outlined.any()
    for picture, still in zip(pictures, stills, strict=True):
        assert picture.shape == still.shape
        assert np.abs(picture - still).mean() < 12
    warmth = np.stack([picture[..., 0] - picture[..., 2] for picture in pictures])
    assert warmth[outlined].mean() > warmth[~outlined].mean() + 40


def test_an_odd_side_is_padded_as_players_want_even_ones(model: Model, scans: Path, tmp_path: Path) -> None:
    source = video(scans / "loop.mp4", loop(2))
    made = OverlayVideo(source, tmp_path / "out", "loop", "model")
    made.add(np.zeros((33, 47), bool), np.full((33, 47, 3), 90, np.uint8))

    with av.open(str(made.close())) as found:
        assert (found.streams.video[0].height, found.streams.video[0].width) == (34, 48)


def test_a_video_that_the_encoder_refuses_is_a_named_problem_and_the_others_are_segmented(
    model: Model, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: OverlayVideo, mask: np.ndarray, overlay: np.ndarray) -> None:
        raise av.error.ExternalError(542398533, "Generic error in an external library")  # as of a width of 17,000

    video(scans / "loop.avi", loop(2))
    monkeypatch.setattr(OverlayVideo, "add", refuse)

    outcome = predict(model, scans, tmp_path / "out")

    (problem,) = outcome.problems
    assert problem.startswith("loop.avi: no-result-file: expected an input that a .avi file can be made for")
    assert [row.image for row in outcome.rows] == ["loop.avi-0000.png", "loop.avi-0001.png"]
    assert {path.name for path in (tmp_path / "out/masks").iterdir()} == {row.image for row in outcome.rows}
    assert (tmp_path / "out/results.csv").exists()


def test_half_a_video_is_taken_away(model: Model, scans: Path, tmp_path: Path) -> None:
    class FailsLater(Model):
        def maps(self, image: np.ndarray, spacing_mm: float | None) -> dict[str, np.ndarray]:
            found = super().maps(image, spacing_mm)
            begun = (tmp_path / "out/overlays/loop.mp4.mp4").exists()
            return {name: p * np.nan for name, p in found.items()} if begun else found

    video(scans / "loop.mp4", loop(90))  # more than the encoder holds back, so that a file is begun

    outcome = predict(FailsLater(model.study, model.networks, "infusion"), scans, tmp_path / "out")

    assert outcome.problems[0].startswith("loop.mp4: not-finite")
    assert 0 < len(outcome.rows) < 90
    assert not (tmp_path / "out/overlays/loop.mp4.mp4").exists()


def test_more_masks_than_memory_holds_are_a_named_problem(
    model: Model, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "MAX_PIXELS", 48 * 64)
    archived(scans / "loop.dcm", loop(2))

    outcome = predict(model, scans, tmp_path / "out")

    assert outcome.problems[0].startswith("loop.dcm: long-loop")
    assert len(outcome.rows) == 2


def test_the_table_tells_area_confidence_and_where_to_look_again(scans: Path) -> None:
    p, other = np.full((10, 20), 0.1), np.full((10, 20), 0.1)
    p[2:6, 5:10] = 0.9
    other[2:6, 5:7] = 0.8
    maps = {"source_branch": p, "target_branch": other, "infusion": p}

    row = row_of("=1+1.png", maps, p, 0.5)

    assert (row.area_px, row.area_mm2, row.mean_confidence) == (20, 5.0, 0.8)
    assert row.branch_dice == pytest.approx(2 * 8 / 28, abs=1e-3)
    assert row.branch_dice < LOOK_AGAIN_DICE
    assert row.look_again == "branches disagree"
    assert row_of("a", {**maps, "target_branch": p}, p, None).look_again == ""
    assert row_of("a", maps, p, float(np.float32(0.1))).spacing_mm == 0.1
    empty = row_of("a", {"source_branch": other * 0}, other * 0, None)
    assert (empty.area_px, empty.area_mm2, empty.mean_confidence, empty.branch_dice) == (0, None, None, None)
    assert empty.look_again == "nothing found"
    write_rows(scans / "t.csv", [row, empty])
    first, second = csv.DictReader((scans / "t.csv").open())
    assert (first["image"], first["area_mm2"]) == ("'=1+1.png", "5.0")  # no formula for a spreadsheet
    assert second["area_mm2"] == ""


def test_the_command_ends_with_done_skipped_and_failed(
    finished: Finished, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(frame(0)).save(scans / "a.png")
    (scans / "b.png").write_bytes(b"no image")
    (scans / ".hidden").write_bytes(b"")

    assert main(["predict", "--model", str(finished.run), "--images", str(scans), "--out", str(tmp_path / "o")]) == 1

    shown = capsys.readouterr()
    assert "done: 1 files; skipped: 1; failed: 1" in shown.out
    assert "skipped, not taken for an image: .hidden" in shown.out
    assert "failed: b.png: unknown-format" in shown.err
    with (tmp_path / "o" / TABLE).open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["a.png"]


def test_progress_moves_within_a_loop_so_that_the_time_left_can_be_told(
    model: Model, scans: Path, tmp_path: Path
) -> None:
    video(scans / "loop.mp4", loop(4))
    seen: list[tuple[float, int]] = []

    predict(model, scans, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))

    assert seen == [(0.25, 1), (0.5, 1), (0.75, 1), (1.0, 1), (1, 1)]


def test_the_python_call_of_the_documents_does_what_the_command_does(
    finished: Finished, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(frame(0)).save(scans / "a.png")
    (tmp_path / "release").symlink_to(finished.run / RELEASE)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/predict.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["example"])

    exec(compile(code, "docs/predict.md", "exec"), {})

    printed = capsys.readouterr().out
    words = ["--model", "release", "--images", "scans", "--out", "other", "--spacing-mm", "0.12"]
    assert main(["predict", *words]) == 0
    files = {path.relative_to("segmented") for path in Path("segmented").rglob("*") if path.is_file()}
    assert Path("masks/a.png") in files
    for file in files:
        assert (Path("segmented") / file).read_bytes() == (Path("other") / file).read_bytes()
    assert printed.startswith("a.png ")


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_half_a_video_is_taken_away_on_ctrl_c_and_a_full_disk_and_the_table_tells_the_rest(
    stopped: BaseException, model: Model, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stops(OverlayVideo):
        def add(self, mask: np.ndarray, overlay: np.ndarray) -> None:
            super().add(mask, overlay)
            if self.file.exists():
                raise stopped

    monkeypatch.setitem(WRITERS, formats.video, Stops)
    video(scans / "loop.mp4", loop(90))

    with pytest.raises((KeyboardInterrupt, RunError)):
        predict(model, scans, tmp_path / "out")

    assert not (tmp_path / "out/overlays/loop.mp4.mp4").exists()
    assert len((tmp_path / "out/results.csv").read_text().splitlines()) > 1
