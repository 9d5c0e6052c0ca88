"""COCO JSON: polygons and run lengths for many images in one file (cocodataset.org, "Data format")."""

from collections import defaultdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from clients.data.formats.recording import reading
from clients.data.images import Mask, PictureError, check_pixels
from common.errors import CrossProbeError
from common.plain_words import problems
from common.strict_text import TextError, parse_json

#: A file of outlines is smaller; read, it takes thirty times as much memory.
MAX_BYTES = 2**24
#: Corners of the polygons of one image.
MAX_CORNERS = 100_000
_Size = Annotated[int, Field(ge=1, le=2**16)]


class Image(BaseModel):
    """An image of the list."""

    id: int
    file_name: str
    height: _Size
    width: _Size


class RunLengths(BaseModel):
    """A mask as lengths of runs down its columns, background first; as text they are compressed."""

    size: tuple[_Size, _Size]
    counts: list[int] | str


class Annotation(BaseModel):
    """An outline: polygons as x0, y0, x1, y1, ... in pixels, or run lengths."""

    image_id: int
    category_id: int
    segmentation: list[list[float]] | RunLengths


class Content(BaseModel):
    """What is read of a file; the rest is left alone."""

    images: list[Image]
    annotations: list[Annotation]


def read(path: Path) -> dict[str, partial[list[Mask]]]:
    """By the name of each image: what gives its mask (see `clients.data.intake.masks.Outlines`).

    Raises:
        CrossProbeError: if the file cannot be read or is no COCO JSON.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise CrossProbeError(f"expected at most {MAX_BYTES >> 20} MiB in {path}, found more. Split the file.")
        content = Content.model_validate(parse_json(text, origin=str(path)))
    except OSError as error:
        raise CrossProbeError(f"cannot read {path}: {error.strerror}. Correct the path.") from None
    except TextError as error:
        raise CrossProbeError(f"{error}. Give a folder of masks or a COCO file.") from None
    except ValidationError as error:
        first = problems(error, Content)[0]
        place = f"{first.key}: " if first.key else ""  # it has none where the whole file is no object
        raise CrossProbeError(
            f"{path} is no COCO file: {place}{first.text}. Export it as COCO, with `images` and `annotations`."
        ) from None
    own = defaultdict(list)
    for annotation in content.annotations:
        own[annotation.image_id].append(annotation)
    return {image.file_name: partial(_masks, image, own[image.id]) for image in content.images}


def _masks(image: Image, annotations: list[Annotation], shape: tuple[int, int, int]) -> list[Mask]:
    """The mask of a single image; empty where nothing is outlined. Raises PictureError."""
    with reading("COCO annotation"):
        check_pixels(image.width, image.height, "mask")
        if len(kinds := {annotation.category_id for annotation in annotations}) > 1:
            raise PictureError(
                "several-structures",
                f"expected outlines of one category, found {len(kinds)}",
                "Export the category that the study is about",
            )
        mask = np.zeros((image.height, image.width), bool)
        corners = 0
        for annotation in annotations:
            given = annotation.segmentation
            if isinstance(given, RunLengths):
                mask |= unpacked(given, mask.shape)
                continue
            for polygon in given:
                corners += len(polygon) // 2
                if corners > MAX_CORNERS:
                    raise PictureError(
                        "huge-mask", f"expected at most {MAX_CORNERS} corners, found more", "Export it again"
                    )
                mask |= drawn(polygon, mask.shape)
        return [mask]


def drawn(polygon: list[float], shape: tuple[int, ...]) -> Mask:
    """Which pixels' centres lie within a polygon; pixel 0 reaches from 0 to 1. Raises ValueError."""
    corners = np.asarray(polygon, dtype=np.float64)
    if len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
        raise ValueError("a polygon has pairs of finite numbers, three or more")
    corners = np.clip(corners.reshape(-1, 2), -1e7, 1e7)
    crossings = np.zeros((shape[0], shape[1] + 1), np.int32)
    for (x, y), (next_x, next_y) in pairwise([*corners, corners[0]]):
        low, high = sorted((y, next_y))
        rows = np.arange(max(0, np.ceil(low - 0.5)), min(shape[0], np.ceil(high - 0.5)), dtype=int)
        across = x + (rows + 0.5 - y) * (next_x - x) / (next_y - y) if len(rows) else rows
        np.add.at(crossings, (rows, np.clip(np.ceil(across - 0.5), 0, shape[1]).astype(int)), 1)
    inside: Mask = crossings[:, :-1].cumsum(1) % 2 == 1
    return inside


def unpacked(given: RunLengths, shape: tuple[int, ...]) -> Mask:
    """The mask of run lengths. Raises ValueError."""
    counts = _decompressed(given.counts) if isinstance(given.counts, str) else given.counts
    if given.size != shape or min(counts, default=0) < 0 or sum(counts) != shape[0] * shape[1]:
        raise ValueError(f"run lengths of {shape[1]} x {shape[0]} pixels were expected")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(shape, order="F")


def _decompressed(text: str) -> list[int]:
    """Run lengths from COCO's text: groups of five bits, low ones first, each the difference to the last but one."""
    counts: list[int] = []
    value = bits = 0
    for letter in text:
        group = ord(letter) - 48
        if not 0 <= group < 64 or bits > 40:
            raise ValueError("compressed run lengths have other letters")
        value |= (group & 31) << bits
        bits += 5
        if group & 32:  # more to come
            continue
        if group & 16:
            value -= 1 << bits
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = bits = 0
    return counts
