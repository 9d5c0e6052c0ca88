"""Masks from COCO files and from 3D Slicer's segmentations, right to the pixel, and what is said of wrong ones."""

import json
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
from PIL import Image

from clients.data.images import PictureError
from clients.data.intake.masks import coco, outlines_of
from clients.data.intake.masks.coco import RunLengths, drawn, unpacked
from clients.data.site import load_site
from common.errors import CrossProbeError
from crossprobe import main
from simulations.phantom.devices import PROFILES
from simulations.phantom.formation import render_frame

HEIGHT, WIDTH = 12, 10
SHAPE = (1, HEIGHT, WIDTH)
BOX = np.zeros((HEIGHT, WIDTH), bool)
BOX[2:7, 3:8] = True
POLYGON = [3, 2, 8, 2, 8, 7, 3, 7]


def counts_of(mask: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, background first."""
    flat = mask.ravel(order="F")
    ends = [*np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size]
    return ([0] if flat[0] else []) + np.diff([0, *ends]).tolist()


def compressed(counts: list[int]) -> str:
    """Run lengths as COCO's own tools write them."""
    text = ""
    for place, count in enumerate(counts):
        value = count - (counts[place - 2] if place > 2 else 0)
        while True:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text += chr(48 + group + 32 * more)
            if not more:
                break
    return text


def content(**changes: Any) -> dict[str, Any]:
    image = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
    annotation = {"image_id": 1, "category_id": 7, "segmentation": [POLYGON], "iscrowd": 0}
    return {"images": [image], "annotations": [annotation | changes], "categories": [{"id": 7, "name": "bone"}]}


def mask_of(folder: Path, given: object) -> np.ndarray:
    (folder / "coco.json").write_text(json.dumps(given))
    (mask,) = coco.read(folder / "coco.json")["a.png"](SHAPE)
    return mask


@pytest.mark.parametrize(
    "segmentation",
    [
        [POLYGON],
        [[3, 2, 8, 2, 8, 4, 3, 4], [3, 4, 8, 4, 8, 7, 3, 7]],
        {"size": [HEIGHT, WIDTH], "counts": counts_of(BOX)},
        {"size": [HEIGHT, WIDTH], "counts": compressed(counts_of(BOX))},
    ],
)
def test_an_outline_of_every_kind_gives_its_pixels(tmp_path: Path, segmentation: object) -> None:
    np.testing.assert_array_equal(mask_of(tmp_path, content(segmentation=segmentation)), BOX)


def test_run_lengths_are_read_as_the_coco_tools_write_them() -> None:
    # Written by hand after the format's description: 38 background, 5, 7, 5, ... and what remains.
    counts = [38, 5, 7, 5, 7, 5, 7, 5, 7, 5, 29]
    assert counts_of(BOX) == counts
    # 38 = 6 + 32: group 6 with "more", then 1; differences from the fourth on are 0 but the last, 29 - 7 = 22.
    assert compressed(counts) == "V1" + "5" + "7" + "0" * 7 + "f0"
    rng = np.random.default_rng(0)
    for share in (0.01, 0.5, 0.99):
        mask = rng.random((70, 50)) < share
        given = RunLengths(size=(70, 50), counts=compressed(counts_of(mask)))
        np.testing.assert_array_equal(unpacked(given, (70, 50)), mask)


def test_a_polygon_holds_the_pixels_whose_centres_it_holds() -> None:
    rows, columns = np.mgrid[:40, :50] + 0.5
    angles = np.linspace(0, 2 * np.pi, 400)
    circle = np.stack([25 + 12 * np.cos(angles), 20 + 12 * np.sin(angles)], 1)
    assert (drawn(circle.ravel().tolist(), (40, 50)) != (np.hypot(columns - 25, rows - 20) < 12)).sum() <= 2
    assert drawn([-9, -9, 99, -9, 99, 99, -9, 99], (40, 50)).all()


def test_an_image_without_an_outline_has_an_empty_mask(tmp_path: Path) -> None:
    assert not mask_of(tmp_path, content() | {"annotations": []}).any()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"segmentation": [[1, 2, 3]]}, "unreadable-image"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [1, 2]}}, "unreadable-image"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}}, "unreadable-image"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "\u00ff~"}}, "unreadable-image"),
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": counts_of(BOX)}}, "unreadable-image"),
        ({"segmentation": [[0.5] * 300_000]}, "huge-mask"),
    ],
)
def test_a_wrong_outline_is_explained(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(PictureError) as caught:
        mask_of(tmp_path, content(**changes))
    assert caught.value.code == code


def test_outlines_of_several_categories_are_refused(tmp_path: Path) -> None:
    given = content()
    given["annotations"].append(given["annotations"][0] | {"category_id": 8})
    with pytest.raises(PictureError, match="one category, found 2"):
        mask_of(tmp_path, given)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"images": []}', '{"images": 1, "annotations": []}', "\x00\xff", '{"a": 1, "a": 2}', "[" * 9999]
)
def test_what_is_no_coco_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "coco.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CrossProbeError, match=r"coco\.json") as caught:
        coco.read(tmp_path / "coco.json")
    assert ": :" not in str(caught.value)


SEGMENT = {"Segment0_ID": "Segment_1", "Segment0_Name": "bone", "Segment0_LabelValue": "1", "Segment0_Layer": "0"}
OTHER = {"Segment1_ID": "Segment_2", "Segment1_Name": "skin", "Segment1_LabelValue": "2", "Segment1_Layer": "0"}


def slicer(path: Path, values: np.ndarray, **header: str) -> Path:
    """A segmentation as 3D Slicer writes it; `values` are [x, y, z] or [layer, x, y, z]."""
    kinds = ["list"] * (values.ndim - 3) + ["domain"] * 3
    nrrd.write(str(path), values.astype(np.uint8), {"kinds": kinds, "encoding": "gzip"} | SEGMENT | header)
    return path


def test_a_segmentation_of_slicer_gives_the_segment_that_is_drawn(tmp_path: Path) -> None:
    (mask,) = outlines_of(slicer(tmp_path / "a.seg.nrrd", BOX.T[..., None], **OTHER))(SHAPE)
    np.testing.assert_array_equal(mask, BOX)
    layers = np.stack([np.zeros_like(BOX.T), 2 * BOX.T])[..., None]
    (mask,) = outlines_of(slicer(tmp_path / "b.seg.nrrd", layers, **OTHER | {"Segment1_Layer": "1"}))(SHAPE)
    np.testing.assert_array_equal(mask, BOX)
    assert not outlines_of(slicer(tmp_path / "c.seg.nrrd", 0 * BOX.T[..., None]))(SHAPE)[0].any()


def test_a_segmentation_that_was_cut_to_what_is_drawn_is_put_back_in_its_place(tmp_path: Path) -> None:
    part = np.ones((5, 5, 1))
    offset = {"Segmentation_ReferenceImageExtentOffset": "3 2 1"}
    masks = outlines_of(slicer(tmp_path / "a.seg.nrrd", part, **offset))((3, HEIGHT, WIDTH))
    assert [mask.any() for mask in masks] == [False, True, False]
    np.testing.assert_array_equal(masks[1], BOX)
    with pytest.raises(PictureError, match="beyond"):
        outlines_of(tmp_path / "a.seg.nrrd")((1, HEIGHT, WIDTH))


def test_several_segments_that_are_drawn_are_refused(tmp_path: Path) -> None:
    values = (BOX * 1 + np.roll(BOX, 5, 0) * 2).T[..., None].clip(0, 2)
    with pytest.raises(PictureError, match="found 2: bone, skin"):
        outlines_of(slicer(tmp_path / "a.seg.nrrd", values, **OTHER))(SHAPE)


def test_a_site_is_made_from_a_coco_file_and_from_segmentations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [render_frame(seed=1, patient=n, frame=0, profile=PROFILES["lumify_like"]) for n in range(3)]
    for name in ("shots/sub", "segmentations/sub"):
        (tmp_path / name).mkdir(parents=True)
    images, annotations = [], []
    for number, frame in enumerate(frames):
        name = f"p{number}_.png"
        Image.fromarray(frame.image).save(tmp_path / "shots/sub" / name)
        slicer(tmp_path / f"segmentations/sub/p{number}_.seg.nrrd", (frame.mask.T > 0)[..., None])
        size = frame.mask.shape
        images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        counts = compressed(counts_of(frame.mask > 0))
        given = {"size": size, "counts": counts}
        annotations.append({"image_id": number, "category_id": 1, "segmentation": given})
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    command = [
        "site",
        "new",
        str(tmp_path / "shots"),
        "--role",
        "source",
        "--patient-pattern",
        r"(p\d)_",
        "--name",
        "a",
    ]
    command += ["--spacing-mm", "0.1", "--keep-outside", "--key", str(tmp_path / "k"), "--masks"]

    (tmp_path / "k").write_bytes(bytes(range(32)))  # by it patients are split: these three each get a split
    (tmp_path / "k").chmod(0o600)
    for masks in ("coco.json", "segmentations"):
        main([*command, str(tmp_path / masks), str(tmp_path / f"site-{masks}")])
        site = load_site(tmp_path / f"site-{masks}")
        found = [int(np.asarray(Image.open(str(frame.mask))).astype(int).sum()) for frame in site.frames]
        assert sorted(found) == sorted(int(frame.mask.astype(int).sum()) for frame in frames)

    (tmp_path / "shots/p0_.png").write_bytes((tmp_path / "shots/sub/p0_.png").read_bytes())
    capsys.readouterr()
    assert main([*command, str(tmp_path / "coco.json"), str(tmp_path / "site")]) == 1
    assert "two images have this name" in capsys.readouterr().err
