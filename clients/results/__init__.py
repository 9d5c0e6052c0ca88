"""What a segmented file becomes, besides pictures, in the form it came in: a file each, and a registry.

A writer is made with the input file, the output folder, the file's name there and the model's name; it takes the
frames one after the other (`add`) and makes its file whole in `close`, which returns where it is. It imports its
library when it is made.
"""

from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from clients.data import formats
from clients.results.dicom import DicomSegmentation
from clients.results.nifti import NiftiMask
from clients.results.video import OverlayVideo


class Writer(Protocol):
    """A file in the making, to lie at `file`."""

    file: Path

    def __init__(self, source: Path, out: Path, name: str, model: str) -> None: ...

    def add(self, mask: np.ndarray, overlay: np.ndarray) -> None:
        """Take a frame: its mask, bool [H, W], and the picture with the outline, uint8 [H, W, 3]."""

    def close(self) -> Path:
        """Write the file and return where it is. Raises PictureError, or what its library raises for the header."""


#: Format of the input -> what it gets besides masks, confidence and overlays.
WRITERS: dict[ModuleType, type[Writer]] = {
    formats.dicom: DicomSegmentation,
    formats.nifti: NiftiMask,
    formats.video: OverlayVideo,
}
