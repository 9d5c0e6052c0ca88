"""Grey PNG files as arrays, with a reason and a repair where a file is something else."""

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from clients.data.findings import Finding, remedy_of

Grey = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]

#: Twice an 8K screen's width by its height would be a photo of a poster. No probe's image comes near, and a small
#: file of more pixels takes gigabytes once it is decoded.
MAX_PIXELS = 4096 * 4096
#: 16-bit pixels below this are 8-, 10- or 12-bit content that was stored without being scaled.
LEAST_16_BIT_TOP = 4096

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
    MemoryError,  # a chunk that says it is 2 GB long is read in one piece
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
        raise _unreadable(kind, error.strerror or error, remedy_of(error)) from error
    if len(head) < 24 or not head.startswith(PNG_SIGNATURE) or head[12:16] != b"IHDR":
        raise _unreadable(kind, "the file does not begin as a PNG")
    width, height = struct.unpack(">II", head[16:24])
    return height, width


def check_pixels(width: int, height: int, kind: str) -> None:
    """Check a picture's size before it is decoded. Raises PictureError `huge-<kind>`."""
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"huge-{kind}",
            f"expected at most {MAX_PIXELS / 1e6:.0f} megapixels, found {width} x {height} px "
            f"({width * height / 1e6:.0f} megapixels)",
            "Export the picture in the size that the scanner shows it in",
        )


def decode_grey(path: Path, kind: str) -> Grey:
    """The pixels of a PNG as uint8 or uint16 [H, W], fully decoded.

    `kind` ("image" or "mask") is for the codes. Raises PictureError: `unreadable-<kind>`, `huge-<kind>`,
    `animated-<kind>`, `colour-<kind>`, `transparent-<kind>` or `dim-16-bit-<kind>`.
    """
    height, width = png_size(path, kind)
    check_pixels(width, height, kind)
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if (frames := getattr(picture, "n_frames", 1)) > 1:
                raise PictureError(
                    f"animated-{kind}",
                    f"expected one picture, found an animation of {frames}",
                    "Export each frame as a PNG of its own, with a row of its own",
                )
            picture.load()
            if picture.mode in ("I;16", "I"):
                return check_depth(np.asarray(picture).astype(np.uint16), kind)
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


def check_depth(pixels: Grey, kind: str) -> Grey:
    """The pixels as they are. Raises PictureError for 16-bit ones of fewer bits, which would be far too dark.

    By how much to scale cannot be told from one image: a dark one of 12 bits looks like a bright one of 10.
    """
    top = int(pixels.max())
    if kind == "image" and pixels.dtype == np.uint16 and 0 < top < LEAST_16_BIT_TOP:
        raise PictureError(
            f"dim-16-bit-{kind}",
            f"expected 16-bit grey that reaches beyond {LEAST_16_BIT_TOP - 1}, found values up to {top}: content of "
            f"{max(8, top.bit_length())} bits or so, stored without scaling",
            "Export with 8 bits, or multiply the values (10 bits by 64, 12 bits by 16) before saving with 16",
        )
    return pixels


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


def _unreadable(kind: str, reason: object, remedy: str = "") -> PictureError:
    return PictureError(
        f"unreadable-{kind}",
        f"expected a whole PNG file, found one that cannot be read ({reason})",
        remedy or "Copy or export the file again; it must be PNG, not another format renamed",
    )


def outline(mask: np.ndarray, width: int = 1) -> np.ndarray:
    """Return the innermost `width` pixels along the border of a mask, bool [H, W]; the image's edge is no border."""
    return mask & ~ndimage.binary_erosion(mask, iterations=width, border_value=1)
