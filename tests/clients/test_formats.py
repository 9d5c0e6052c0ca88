"""What is read from each format that hospitals have, and what is said about the files that cannot be read."""

import gzip
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from PIL import Image
from recordings import PATIENT_ID, dicom, frame, video

from clients.data.formats import open_recording
from clients.data.formats.recording import Field, b_mode, to_grey
from clients.data.images import PictureError

FRAMES = np.stack([frame(seed) for seed in range(3)])
RGB = np.repeat(FRAMES[..., None], 3, -1)
COLOURED = np.stack([frame(0), frame(3), frame(5)], -1)[None]


def grey_frames(path: Path) -> np.ndarray:
    return np.stack([to_grey(pixels)[0] for pixels in open_recording(path).frames()])


def ycbcr(frames: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(own).convert("YCbCr")) for own in frames])


@pytest.mark.parametrize(
    ("name", "tolerance", "options"),
    [
        ("PNG", 0, {}),
        ("JPEG", 6, {"quality": 95}),
        ("TIFF", 0, {}),
        ("TIFF", 0, {"compression": "tiff_lzw"}),
        ("BMP", 0, {}),
    ],
)
def test_pictures_are_read_whatever_their_suffix(
    tmp_path: Path, name: str, tolerance: int, options: dict[str, object]
) -> None:
    Image.fromarray(FRAMES[0]).save(tmp_path / "scan", name, **options)

    recording = open_recording(tmp_path / "scan")

    assert (recording.height, recording.width, recording.count) == (48, 64, 1)
    assert np.abs(grey_frames(tmp_path / "scan")[0].astype(int) - FRAMES[0]).max() <= tolerance


@pytest.mark.parametrize("name", ["GIF", "TIFF", "PNG"])
def test_pages_and_animations_are_frames(tmp_path: Path, name: str) -> None:
    first, *others = [Image.fromarray(own) for own in FRAMES]
    first.save(tmp_path / "loop", name, save_all=True, append_images=others)

    assert open_recording(tmp_path / "loop").count == 3
    np.testing.assert_array_equal(grey_frames(tmp_path / "loop"), FRAMES)


def test_a_picture_that_a_camera_turned_is_turned_back(tmp_path: Path) -> None:
    turned = Image.fromarray(np.rot90(FRAMES[0]))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    turned.save(tmp_path / "a.png", exif=exif)

    recording = open_recording(tmp_path / "a.png")

    assert (recording.height, recording.width) == (48, 64)
    np.testing.assert_array_equal(grey_frames(tmp_path / "a.png")[0], FRAMES[0])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("syntax", [None, "rle", "jpeg", "jpeg2000"])
def test_dicom_is_read_plain_and_compressed(tmp_path: Path, syntax: str | None, count: int) -> None:
    dicom(tmp_path / "IM0001", FRAMES[:count], syntax=syntax)

    recording = open_recording(tmp_path / "IM0001")
    found = grey_frames(tmp_path / "IM0001")

    assert recording.count == count
    assert recording.spacing_mm == pytest.approx(0.2)
    assert recording.device == "Maker Model 5"
    assert recording.patient == PATIENT_ID
    assert np.abs(found.astype(int) - FRAMES[:count]).max() <= (6 if syntax == "jpeg" else 0)


@pytest.mark.parametrize(
    ("photometric", "stored"),
    [
        ("MONOCHROME1", 255 - FRAMES),
        ("RGB", RGB),
        ("YBR_FULL", ycbcr(RGB)),
    ],
)
def test_every_way_to_store_grey_in_dicom_gives_the_same_grey(
    tmp_path: Path, photometric: str, stored: np.ndarray
) -> None:
    found = grey_frames(dicom(tmp_path / "a.dcm", stored, photometric=photometric))

    assert np.abs(found.astype(int) - FRAMES).max() <= 1


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    table = (np.arange(255, -1, -1, dtype=np.uint16) << 8).astype("<u2").tobytes()
    names = ("Red", "Green", "Blue")
    tags = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in names}
    tags |= {f"{name}PaletteColorLookupTableData": table for name in names}

    found = grey_frames(dicom(tmp_path / "a.dcm", FRAMES, photometric="PALETTE COLOR", **tags))

    np.testing.assert_array_equal(found, 255 - FRAMES)


def test_twelve_bits_in_sixteen_are_as_bright_as_eight(tmp_path: Path) -> None:
    found = grey_frames(dicom(tmp_path / "a.dcm", FRAMES.astype(np.uint16) * 16 + 8, bits=12))

    assert np.abs(found.astype(int) - FRAMES).max() <= 1


def test_spacing_and_field_are_those_of_the_largest_b_mode_region(tmp_path: Path) -> None:
    recording = open_recording(dicom(tmp_path / "a.dcm", FRAMES, region=(4, 6, 40, 999), spacing_mm=0.15))

    assert recording.field == Field(4, 6, 40, 64)
    assert recording.spacing_mm == pytest.approx(0.15)


def test_without_regions_the_plain_spacing_counts_or_there_is_none(tmp_path: Path) -> None:
    given = dicom(tmp_path / "a.dcm", FRAMES, spacing_mm=None, PixelSpacing=[0.3, 0.3])
    assert open_recording(given).spacing_mm == pytest.approx(0.3)
    assert open_recording(dicom(tmp_path / "b.dcm", FRAMES, spacing_mm=None)).spacing_mm is None


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_has_its_frames_along_the_last_axis(tmp_path: Path, kind: type, suffix: str) -> None:
    volume = kind(FRAMES.transpose(2, 1, 0), np.diag([0.2, 0.2, 1, 1]))
    nibabel.save(volume, tmp_path / f"a{suffix}")

    np.testing.assert_array_equal(grey_frames(tmp_path / f"a{suffix}"), FRAMES)
    assert open_recording(tmp_path / f"a{suffix}").spacing_mm == pytest.approx(0.2)


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_nrrd_is_read_with_its_spacing(tmp_path: Path, encoding: str) -> None:
    header = {"space directions": np.diag([0.2, 0.2, 1.0]), "space": "left-posterior-superior", "encoding": encoding}
    nrrd.write(str(tmp_path / "a.nrrd"), FRAMES.transpose(2, 1, 0), header)

    np.testing.assert_array_equal(grey_frames(tmp_path / "a.nrrd"), FRAMES)
    assert open_recording(tmp_path / "a.nrrd").spacing_mm == pytest.approx(0.2)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mov"])
def test_cine_loops_are_frames(tmp_path: Path, suffix: str) -> None:
    found = grey_frames(video(tmp_path / f"loop{suffix}", FRAMES))

    assert found.shape == FRAMES.shape
    assert np.abs(found.astype(int) - FRAMES).mean() < 8


def test_colour_is_refused_where_it_is_more_than_a_logo(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="B-mode") as caught:
        b_mode(COLOURED[0])
    assert caught.value.code == "colour-image"
    logo = RGB[0].copy()
    logo[:4, :6] = (255, 0, 0)
    assert b_mode(logo).shape == (48, 64)


def test_no_value_of_a_broken_header_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: object
) -> None:
    file = dicom(tmp_path / "a.dcm", FRAMES)
    content = file.read_bytes().replace(b"PN\x0c\x00Mueller^Anna", b"UI\x0c\x00Mueller^Anna")
    file.write_bytes(content.replace(b"LO\x0a\x00HOSP-4711 ", b"UI\x0a\x00HOSP-4711 "))

    assert open_recording(file).count == 3

    shown = capsys.readouterr()
    for text in (shown.out, shown.err, caplog.text, str([str(w.message) for w in recwarn])):  # type: ignore[attr-defined]
        assert "Mueller" not in text
        assert "4711" not in text


def bomb_png(path: Path) -> None:
    """A small file that claims a gigapixel: decoded, it would take gigabytes."""
    head = struct.pack(">II", 32768, 32768) + b"\x08\x00\x00\x00\x00"
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(32769 * 1000), 9)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def nifti_claim(path: Path, shape: tuple[int, ...] = (30000, 30000, 300), offset: int = 352) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", offset
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + bytes(1000)))


def nrrd_bomb(path: Path) -> None:
    """Gigabytes of zeros behind a header that tells of a small image: only as much is unpacked as it tells."""
    packed = gzip.compress(bytes(2**26))
    path.write_bytes(b"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 90000 90000\nencoding: gzip\n\n" + packed)


def nrrd_link(path: Path) -> None:
    path.write_bytes(b"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 4 4\nencoding: raw\ndata file: /etc/passwd\n\n")


def jpeg_in_disguise(path: Path) -> None:
    path.write_bytes(b"\xff\xd8\xff\xe0 no jpeg")


BAD_FILES: list[tuple[str, Callable[[Path], object]]] = [
    ("unknown-format", lambda path: path.write_text("a report in words")),
    ("unreadable-image", lambda path: path.write_bytes(b"")),
    ("unreadable-image", lambda path: path.mkdir()),
    ("unreadable-image", jpeg_in_disguise),
    ("huge-image", bomb_png),
    ("huge-image", nifti_claim),
    ("huge-image", lambda path: nifti_claim(path, (4, 4), 2**40)),
    ("huge-image", nrrd_bomb),
    ("detached-values", nrrd_link),
    ("huge-image", lambda path: dicom(path, FRAMES, Rows=60000, Columns=60000)),
    ("huge-image", lambda path: dicom(path, FRAMES, NumberOfFrames=100_000)),
    ("huge-image", lambda path: dicom(path, FRAMES, Rows=4000, Columns=4000, NumberOfFrames=200)),
    ("no-ultrasound", lambda path: dicom(path, FRAMES, Modality="CT")),
    ("unreadable-image", lambda path: dicom(path, FRAMES, NumberOfFrames=30)),
    ("unreadable-image", lambda path: dicom(path, FRAMES, SamplesPerPixel=3)),
    ("signed-pixels", lambda path: dicom(path, FRAMES, PixelRepresentation=1)),
    ("unreadable-image", lambda path: path.write_bytes(video(path.with_suffix(".mp4"), FRAMES).read_bytes()[:200])),
    ("unreadable-image", lambda path: path.write_bytes(b"RIFF\0\0\0\0AVI LIST" + bytes(100))),
    ("no-pixels", lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(range(256)))),
    ("unreadable-image", lambda path: path.write_bytes(bytes(344) + b"n+1\0" + bytes(100))),
]


@pytest.mark.parametrize(("code", "write"), BAD_FILES, ids=[f"{n}-{code}" for n, (code, _) in enumerate(BAD_FILES)])
def test_a_file_that_cannot_be_read_is_named_and_explained(
    tmp_path: Path, code: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path / "file")

    with pytest.raises(PictureError) as caught:
        list(open_recording(tmp_path / "file").frames())

    assert caught.value.code == code
    assert "expected" in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("seed", range(40))
def test_a_file_with_flipped_bytes_is_read_or_refused_and_nothing_else(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    nibabel.save(nibabel.Nifti1Image(FRAMES.transpose(2, 1, 0), np.eye(4)), tmp_path / "a.nii")
    nrrd.write(str(tmp_path / "a.nrrd"), FRAMES.transpose(2, 1, 0))
    Image.fromarray(FRAMES[0]).save(tmp_path / "a.tif")
    Image.fromarray(FRAMES[0]).save(tmp_path / "a.jpg")
    dicom(tmp_path / "a.dcm", FRAMES, syntax="jpeg")
    video(tmp_path / "a.mp4", FRAMES)
    for file in sorted(tmp_path.iterdir()):
        content = bytearray(file.read_bytes())
        for place in rng.integers(0, min(len(content), 1500), 6):
            content[place] = rng.integers(0, 256)
        file.write_bytes(content)
        with suppress(PictureError):
            assert all(own.dtype in (np.uint8, np.uint16) for own in open_recording(file).frames())
