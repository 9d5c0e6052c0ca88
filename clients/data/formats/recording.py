"""What every image format is read into: frames, and the few facts that may be taken over with them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from clients.data.images import Grey, PictureError, check_pixels

#: uint8 or uint16 [H, W], or uint8 [H, W, 3].
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

#: A minute at 60 frames a second, more than any loop that a scanner keeps.
MAX_FRAMES = 3600
#: Pixels of all frames together: half a minute of 1280 x 960 at 60 a second. Every one is decoded, and looked at.
MAX_PIXELS_OF_ALL = 2**31
#: Channels that differ by more are colour; JPEG alone makes grey differ by a few levels.
COLOUR_LEVELS = 40
#: Share of coloured pixels from which an image is no B-mode: a logo or a caliper is less, a Doppler box is more.
COLOUR_SHARE = 0.05
#: Pixels may be this far from square, as a share.
SQUARENESS = 0.02


@dataclass(frozen=True)
class Field:
    """A rectangle within an image, in pixels: rows `top` to `bottom` - 1, columns `left` to `right` - 1."""

    top: int
    left: int
    bottom: int
    right: int

    def within(self, height: int, width: int) -> "Field":
        """The part that lies within an image of this size; it may be empty."""
        return Field(
            min(max(self.top, 0), height),
            min(max(self.left, 0), width),
            min(max(self.bottom, 0), height),
            min(max(self.right, 0), width),
        )

    @property
    def area(self) -> int:
        """In pixels."""
        return max(0, self.bottom - self.top) * max(0, self.right - self.left)


@dataclass(frozen=True)
class Recording:
    """An image or a cine loop.

    Attributes:
        frames: makes an iterator over the frames, each [height, width] or [height, width, 3].
        count: how many there are, as far as the header tells; 0: it does not.
        spacing_mm: side of a pixel, or None where the file does not say.
        field: where the scanner says that the ultrasound image lies, or None.
        patient: the file's own id of the patient, which must not be written anywhere as it is; or empty.
        device: maker and model, or empty.
    """

    frames: Callable[[], Iterator[Pixels]]
    count: int
    height: int
    width: int
    spacing_mm: float | None = None
    field: Field | None = None
    patient: str = ""
    device: str = ""

    def __post_init__(self) -> None:
        check_pixels(self.width, self.height, "image")
        check_length(self.count, self.height, self.width)


def check_length(count: int, height: int, width: int) -> None:
    """Raises PictureError `huge-image` for a loop that no scanner makes, and that would take minutes."""
    most = min(MAX_FRAMES, MAX_PIXELS_OF_ALL // max(1, height * width))
    if count > most:
        raise huge(f"{count} or more", f"at most {most} frames of {width} x {height} px")


@contextmanager
def reading(kind: str) -> Iterator[None]:
    """Turn whatever a format's library raises into a PictureError `unreadable-image`.

    Broken files make these libraries raise errors of every kind, from `KeyError` to their decoders' own.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a library, about a file that is read or refused anyhow
            yield
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise huge("more pixels than any screen has") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        message = f"expected a whole {kind}, found one that cannot be read ({reason})"
        raise PictureError("unreadable-image", message, "Copy or export it again") from None


def huge(found: str, expected: str = "an image or a clip as a scanner shows it") -> PictureError:
    """The error of a file that would take more memory than any image may."""
    return PictureError("huge-image", f"expected {expected}, found {found}", "Export single, shorter clips")


def to_grey(pixels: Pixels) -> tuple[Grey, float]:
    """The grey image [H, W] of a frame, and the share of its pixels that were coloured, in [0, 1]."""
    if pixels.ndim == 2:
        return pixels, 0.0
    if (pixels[..., :1] == pixels[..., 1:]).all():  # most videos
        return pixels[..., 0], 0.0
    wide = pixels.astype(np.int16)
    coloured = wide.max(-1) - wide.min(-1) > COLOUR_LEVELS
    grey = np.rint(pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)  # ITU-R BT.601
    return grey, float(coloured.mean())


def b_mode(pixels: Pixels) -> Grey:
    """The grey image [H, W] of a frame. Raises PictureError `colour-image` where too much of it is coloured."""
    grey, share = to_grey(pixels)
    if share > COLOUR_SHARE:
        raise PictureError(
            "colour-image",
            f"expected B-mode, found colour in {share:.0%} of the image",
            "Export without Doppler, elastography or coloured maps",
        )
    return grey


def square(x_mm: float, y_mm: float) -> float | None:
    """The side of a pixel in mm, or None where a header gives none.

    Raises:
        PictureError: `non-square-pixels`.
    """
    if not (0 < x_mm < np.inf and 0 < y_mm < np.inf):
        return None
    if abs(x_mm / y_mm - 1) > SQUARENESS:
        raise PictureError(
            "non-square-pixels",
            f"expected square pixels, found {x_mm:.4g} x {y_mm:.4g} mm",
            "Export the image with square pixels",
        )
    return (x_mm * y_mm) ** 0.5


def scaled(values: np.ndarray, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Values from `low` to `high` as uint8 from 0 to 255."""
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return np.ascontiguousarray(values)
    span = high - low if high > low else 1.0
    return np.rint((np.clip(values.astype(np.float32), low, high) - low) * np.float32(255 / span)).astype(np.uint8)
