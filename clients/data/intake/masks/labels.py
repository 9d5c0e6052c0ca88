"""A mask as an image of its own, in any image format: 0 is background, one other label is the structure."""

from pathlib import Path

import numpy as np

from clients.data.formats import open_recording
from clients.data.formats.recording import to_grey
from clients.data.images import Mask, PictureError


def matches(path: Path) -> bool:
    """Whether it may be one: opening it tells."""
    return True


def read(path: Path, shape: tuple[int, int, int]) -> list[Mask]:
    """A mask for each frame of the file. Raises PictureError."""
    found = []
    for pixels in open_recording(path).frames():
        grey = to_grey(pixels)[0]
        if not ((grey == 0) | (grey == grey.max())).all():
            raise PictureError(
                "non-binary-mask",
                f"expected 0 and one label in {path.name}, found {len(np.unique(grey))} values",
                "Export one structure, as PNG, NIfTI or NRRD; JPEG smears outlines",
            )
        found.append(grey > 0)
    return found
