"""Segmentations of 3D Slicer, `.seg.nrrd`: labels, and in the header which segment they are.

Slicer may keep only the part of a segmentation that is drawn on, and then tells where in the image it lies; segments
that overlap lie in layers (3D Slicer's developer guide, "Segmentations").
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from clients.data.formats import nrrd
from clients.data.formats.recording import reading
from clients.data.images import Mask, PictureError

#: Bytes at the file's beginning, in which its header's first segment is named.
HEAD_BYTES = 64 * 1024
_LABEL = re.compile(r"(Segment\d+)_LabelValue")
_OFFSET = "Segmentation_ReferenceImageExtentOffset"


def matches(path: Path) -> bool:
    """Whether a file is NRRD with segments in its header."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False  # who opens it as an image says why
    return nrrd.matches(head) and _LABEL.search(head.partition(b"\n\n")[0].decode("latin-1")) is not None


def read(path: Path, shape: tuple[int, int, int]) -> list[Mask]:
    """A mask for each frame of an image of `shape`: frames, height and width. Raises PictureError."""
    with reading("segmentation of 3D Slicer"):
        header, values = nrrd.read_values(path, axes=(2, 3, 4))
        layers = values if values.ndim == 4 else values[None]
        drawn = _segment(header, layers).reshape(*layers.shape[1:3], -1).T  # frames, rows, columns
        return list(_placed(drawn, header, shape))


def _segment(header: dict[str, Any], layers: np.ndarray) -> Mask:
    """Where the one segment is that is drawn. Raises PictureError if there are several."""
    found = {}
    for key in header:
        if named := _LABEL.fullmatch(key):
            layer = layers[int(header.get(f"{named[1]}_Layer", 0))]
            if (own := layer == int(header[key])).any():
                found[str(header.get(f"{named[1]}_Name", named[1]))] = own
    if len(found) > 1:
        raise PictureError(
            "several-structures",
            f"expected one segment that is drawn, found {len(found)}: {', '.join(sorted(found)[:5])}",
            "Export the one that the study is about",
        )
    return next(iter(found.values()), np.zeros(layers.shape[1:], bool))


def _placed(drawn: Mask, header: dict[str, Any], shape: tuple[int, int, int]) -> Mask:
    """The masks [F, H, W] within the whole image, of which only a part may be stored."""
    offset = tuple(int(own) for own in str(header.get(_OFFSET, "0 0 0")).split())[::-1]
    if drawn.shape == shape or _OFFSET not in header:
        return drawn
    end = tuple(start + side for start, side in zip(offset, drawn.shape, strict=True))
    if min(offset) < 0 or any(own > most for own, most in zip(end, shape, strict=True)):
        raise PictureError(
            "mask-size",
            f"expected a segmentation within {shape[2]} x {shape[1]} px and {shape[0]} frames, found it beyond",
            "Export it with the image that it was drawn on",
        )
    whole = np.zeros(shape, bool)
    whole[tuple(slice(*own) for own in zip(offset, end, strict=True))] = drawn
    return whole
