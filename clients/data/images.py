"""Grey PNG files as arrays, with a reason and a repair where a file is something else."""

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from clients.data.findings import Finding

Grey = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# All that Pillow lets through from a damaged file, besides its own OSError subclasses.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class PictureError(Exception):
    """A PNG that cannot be used, as the code, message and remedy of a finding to be."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.code, self.message, self.remedy = code, message, remedy

    def finding(self, where: str) -> Finding:
        """The finding of this problem at a place."""
        return Finding(self.code, where, self.message, self.remedy)


def png_size(path: Path, kind: str) -> tuple[int, int]:
    """(height, width) from the first 24 bytes of a PNG; not one byte of its pixels is read.

    Raises PictureError (`unreadable-<kind>`) for a file that is no PNG.
    """
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        raise _unreadable(kind, error) from error
    if len(head) < 24 or not head.startswith(PNG_SIGNATURE) or head[12:16] != b"IHDR":
        raise _unreadable(kind, "the file does not begin as a PNG")
    width, height = struct.unpack(">II", head[16:24])
    return height, width


def decode_grey(path: Path, kind: str) -> Grey:
    """The pixels of a PNG as uint8 or uint16 [H, W], fully decoded.

    `kind` ("image" or "mask") is for the codes. Raises PictureError: `unreadable-<kind>`,
    `colour-<kind>` or `transparent-<kind>`.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()
            if picture.mode in ("I;16", "I"):
                return np.asarray(picture).astype(np.uint16)
            if picture.mode in ("L", "1"):
                return np.array(picture.convert("L"), dtype=np.uint8)
            pixels = np.asarray(picture.convert("RGBA"), dtype=np.uint8)
    except DECODE_ERRORS as error:
        raise _unreadable(kind, error) from error
    grey = pixels[..., 0]
    if (pixels[..., 1] != grey).any() or (pixels[..., 2] != grey).any():
        raise PictureError(
            f"colour-{kind}",
            "expected grey, found red, green and blue that differ",
            "Export B-mode without colour (no Doppler, no coloured overlay), as grey PNG",
        )
    # What is drawn in the alpha channel only would be lost without a word.
    if (pixels[..., 3] != 255).any():
        raise PictureError(
            f"transparent-{kind}",
            "expected opaque pixels, found an alpha channel that is used",
            "Save the picture without transparency, as grey PNG",
        )
    return grey.copy()


def decode_mask(path: Path) -> Mask:
    """A mask as bool [H, W]; an all-zero mask is a valid one, of a frame without the structure.

    Raises PictureError: those of `decode_grey`, or `non-binary-mask`.
    """
    pixels = decode_grey(path, "mask")
    if not ((pixels == 0) | (pixels == pixels.max())).all():
        values = np.unique(pixels)
        shown = ", ".join(str(value) for value in values[:6]) + (", …" if len(values) > 6 else "")
        raise PictureError(
            "non-binary-mask",
            f"expected 0 and one positive value, found {len(values)} values ({shown})",
            "Save the outline filled, without smooth edges, one structure per mask, as PNG",
        )
    return pixels > 0


def check_mask_size(found: tuple[int, ...], image: tuple[int, ...]) -> None:
    """Raises PictureError (`mask-size`) unless a mask's (height, width) is that of its image."""
    if found != image:
        raise PictureError(
            "mask-size",
            f"expected the size of the image, {image[1]} x {image[0]} px (width x height), "
            f"found {found[1]} x {found[0]} px",
            "Export image and mask from the same view, neither cropped nor scaled by itself",
        )


def _unreadable(kind: str, reason: object) -> PictureError:
    return PictureError(
        f"unreadable-{kind}",
        f"expected a whole PNG file, found one that cannot be read ({reason})",
        "Copy or export the file again; it must be PNG, not another format renamed",
    )
