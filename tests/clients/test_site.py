"""What is read from a good site's folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from site_folder import (
    COLOUR,
    HEIGHT,
    MASKED_AT_TARGET,
    WIDTH,
    cell,
    column,
    disc,
    good_site,
    grey_levels,
    picture,
    read_rows,
    save,
    write_rows,
)

from clients.data.findings import SiteFolderError
from clients.data.frames import read_image, read_mask
from clients.data.manifest import SOURCE_FRACTIONS, split_of_patient
from clients.data.site import load_site


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_good_folder_is_loaded_in_the_order_of_its_manifest(tmp_path: Path, role: str) -> None:
    calls: list[tuple[int, int]] = []
    site = load_site(good_site(tmp_path / "north", role), lambda *call: calls.append(call))

    assert (site.config.name, site.config.role, site.config.threads) == ("north", role, 1)
    assert [frame.image.name for frame in site.frames[:3]] == ["p1_0.png", "p1_1.png", "p2_0.png"]
    assert {(frame.height, frame.width) for frame in site.frames} == {(HEIGHT, WIDTH)}
    assert site.has_spacing
    assert calls == [(done, 8) for done in range(1, 9)]


def test_frames_and_patients_are_chosen_by_split_and_label(tmp_path: Path) -> None:
    site = load_site(good_site(tmp_path / "north", "target"))

    assert site.patients("train") == ["p1", "p2"]
    assert site.patients("train", labelled=True) == []
    assert len(site.frames_of("test", labelled=True)) == 2
    assert site.frames_of("test", labelled=False) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_of_8_and_16_bits_are_read_into_zero_to_one(tmp_path: Path, dtype: type) -> None:
    folder = good_site(tmp_path / "north")
    content = picture(9, dtype)
    content[0, :2] = 0, np.iinfo(dtype).max
    save(folder / "images/p1_0.png", content)

    image = read_image(load_site(folder).frames[0])

    assert image.dtype == np.float32
    np.testing.assert_allclose(image, content / np.iinfo(dtype).max, atol=1e-7)
    assert (image[0, 0], image[0, 1]) == (0.0, 1.0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_a_grey_picture_stored_with_more_channels_is_read_as_grey(tmp_path: Path, mode: str) -> None:
    folder = good_site(tmp_path / "north")
    grey = Image.fromarray(picture(0))
    grey.convert(mode).save(folder / "images/p1_0.png")

    image = read_image(load_site(folder).frames[0])

    np.testing.assert_array_equal(np.round(image * 255), picture(0))


def test_masks_are_read_whatever_their_positive_value_and_may_be_empty(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north")
    save(folder / "masks/p1_0.png", disc() // 255)
    save(folder / "masks/p1_1.png", disc() * 0)

    one, empty = load_site(folder).frames[:2]

    np.testing.assert_array_equal(read_mask(one), disc() > 0)
    assert read_mask(empty).dtype == np.bool_
    assert not read_mask(empty).any()


@pytest.mark.parametrize(
    ("content", "code"),
    [(grey_levels(0, 127, 255), "non-binary-mask"), (COLOUR, "colour-mask")],
)
def test_a_test_mask_of_a_target_is_judged_only_when_it_is_read(tmp_path: Path, content: np.ndarray, code: str) -> None:
    folder = good_site(tmp_path / "north", "target")
    save(folder / "masks/p3_0.png", content)

    frame = load_site(folder).frames_of("test")[0]

    with pytest.raises(SiteFolderError) as caught:
        read_mask(frame)
    assert [finding.code for finding in caught.value.findings] == [code]


def test_an_empty_split_follows_the_patient_and_a_new_patient_moves_nobody(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north")
    column("split", "")(folder)
    rows = read_rows(folder)
    patients = [f"q{number}" for number in range(8)]
    rows = [row | {"patient": p, "video": ""} for row, p in zip(rows, patients, strict=True)]
    write_rows(folder, rows)
    all_splits = {frame.patient: frame.split for frame in load_site(folder).frames}
    write_rows(folder, rows[:5])
    for row in rows[5:]:
        (folder / row["image"]).unlink()

    fewer = {frame.patient: frame.split for frame in load_site(folder).frames}

    assert fewer == {patient: all_splits[patient] for patient in patients[:5]}


def test_hashed_splits_have_the_promised_fractions() -> None:
    splits = [split_of_patient(f"patient {n}", SOURCE_FRACTIONS) for n in range(4000)]

    for split, fraction in SOURCE_FRACTIONS:
        assert splits.count(split) / 4000 == pytest.approx(fraction, abs=0.02)


def test_at_a_target_patients_with_masks_are_test_and_the_others_never(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north", "target")
    column("split", "")(folder)
    cell("mask", "", row=4)(folder)  # the other frame of this patient keeps its mask

    site = load_site(folder)

    assert site.patients("test") == [MASKED_AT_TARGET]
    assert len(site.frames_of("test")) == 2
    assert {frame.split for frame in site.frames} <= {"train", "val", "test"}


def test_a_row_without_split_follows_the_patients_other_rows(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north")
    cell("split", "")(folder)

    assert load_site(folder).frames[0].split == "train"


def test_byte_order_mark_blank_lines_and_missing_spacing_are_no_fault(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north")
    rows = [row | {"spacing_mm": "", "frame": "", "video": ""} for row in read_rows(folder)]
    write_rows(folder, rows, encoding="utf-8-sig")
    with (folder / "manifest.csv").open("a") as file:
        file.write("\n\n")

    site = load_site(folder)

    assert not site.has_spacing
    assert {(frame.frame, frame.video) for frame in site.frames} == {(0, "")}


def test_two_views_with_the_same_pixels_in_one_patient_are_no_fault(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north")
    save(folder / "images/p1_1.png", picture(0))

    assert load_site(folder).patients("train") == ["p1"]


def european(edit: Callable[[str], bytes]) -> Callable[[Path], object]:
    path = "manifest.csv"
    return lambda folder: (folder / path).write_bytes(edit((folder / path).read_text()))


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("1.0", "1#0").replace(",", ";").replace("#", ",").encode(),
        lambda text: b"sep=;\r\n" + text.replace(",", ";").encode(),
        lambda text: text.replace(",", "\t").encode("utf-16"),
        lambda text: text.replace("probe", "Prüfkopf").encode("cp1252"),
        lambda text: text.replace("probe", "Prüfkopf").encode("utf-8-sig"),
        lambda text: text.replace("image,", "Image,").replace("spacing_mm", " SPACING_MM ").encode(),
        lambda text: text.replace("\n", ",remark\n").encode(),
        lambda text: text.replace("\n", ",,\n").replace("split,,", "split").encode() + b",,,,,,,,,\n",
        lambda text: text.replace(",train", ",Train").encode(),
        lambda text: text.replace("/", "\\").encode(),
    ],
    ids=["semicolon", "sep", "utf-16", "cp1252", "bom", "capitals", "extra", "padded", "split", "windows"],
)
def test_a_table_from_any_european_spreadsheet_gives_the_same_site(
    tmp_path: Path, edit: Callable[[str], bytes]
) -> None:
    plain = load_site(good_site(tmp_path / "north"))
    european(edit)(plain.folder)

    found = load_site(plain.folder)

    assert [replace(frame, device="probe") for frame in found.frames] == list(plain.frames)
    assert {frame.device for frame in found.frames} in ({"probe"}, {"Prüfkopf"})


def test_columns_that_are_optional_may_be_missing(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north", "target")
    rows = [{"patient": row["patient"], "image": row["image"]} for row in read_rows(folder)]
    text = "\n".join(["patient,image", *(f"{row['patient']},{row['image']}" for row in rows)])
    (folder / "manifest.csv").write_text(text)

    site = load_site(folder)

    assert [frame.patient for frame in site.frames] == [row["patient"] for row in rows]
    assert not site.has_spacing
    assert {frame.mask for frame in site.frames} == {None}
