"""PNG, JPEG, TIFF, BMP and GIF, also of several pages or frames."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from clients.data.formats.recording import Pixels, Recording, reading
from clients.data.images import PictureError, check_pixels

MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM", b"GIF87a", b"GIF89a")
NAMES = ("PNG", "JPEG", "TIFF", "BMP", "GIF")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


def matches(head: bytes) -> bool:
    """Whether a file begins as one of these formats."""
    return head.startswith(MAGIC)


def read(path: Path) -> Recording:
    """The frames of a file. Raises PictureError."""
    with reading("image"):
        picture = Image.open(path, formats=NAMES)
    with reading("image"), picture:
        check_pixels(picture.width, picture.height, "image")
        count = getattr(picture, "n_frames", 1)
        height, width = picture.height, picture.width
        if picture.getexif().get(0x0112, 1) > 4:  # lying on its side
            height, width = width, height
    return Recording(lambda: _frames(path, count), count, height, width)


def _frames(path: Path, count: int) -> Iterator[Pixels]:
    with reading("image"), Image.open(path, formats=NAMES) as picture:
        for index in range(count):
            picture.seek(index)
            check_pixels(picture.width, picture.height, "image")  # a page may have a size of its own
            picture.load()
            yield _pixels(ImageOps.exif_transpose(picture))


def _pixels(picture: Image.Image) -> Pixels:
    if picture.mode in ("L", "1"):
        return np.array(picture.convert("L"), dtype=np.uint8)
    if picture.mode in _SIXTEEN_BITS:
        return np.array(picture).astype(np.uint16)
    if picture.mode in ("I", "F"):
        raise PictureError("unknown-depth", f"expected 8 or 16 bits, found {picture.mode}", "Export with 8 bits")
    with_alpha = np.asarray(picture.convert("RGBA"), dtype=np.uint8)
    if picture.format != "GIF" and (with_alpha[..., 3] != 255).any():
        raise PictureError(
            "transparent-image",
            "expected opaque pixels, found an alpha channel that is used",
            "Save the picture without transparency",
        )
    return with_alpha[..., :3].copy()
