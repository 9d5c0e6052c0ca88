"""NRRD with its values in the same file, raw or gzip: 2D images, and 3D files whose last axis is the frame."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from clients.data.formats.nifti import MAX_BYTES, frames_of
from clients.data.formats.recording import Recording, huge, reading, square
from clients.data.images import PictureError


def matches(head: bytes) -> bool:
    """Whether a file begins as NRRD."""
    return head.startswith(b"NRRD000")


def read(path: Path) -> Recording:
    """The frames of a NRRD file. Raises PictureError."""
    with reading("NRRD file"):
        header, values = read_values(path, axes=(2, 3))
        volume = values.reshape(*values.shape[:2], -1, order="F")
        spacing = _spacing(header)
        return Recording(lambda: frames_of(volume), volume.shape[2], volume.shape[1], volume.shape[0], spacing)


def read_values(path: Path, axes: tuple[int, ...]) -> tuple[dict[str, Any], np.ndarray]:
    """The header of a NRRD file and its values, the first axis of which changes fastest.

    Args:
        axes: how many there may be.

    Raises:
        PictureError: and whatever a broken header makes the library raise; see `reading`.
    """
    import nrrd

    with path.open("rb") as file:
        header = nrrd.read_header(file)
        if any(key in header for key in ("data file", "datafile")):
            # The file it names could be any on this machine.
            raise PictureError("detached-values", "expected the values in the file, found a link", "Save as .nrrd")
        shape = tuple(int(side) for side in header["sizes"])
        dtype = np.dtype(nrrd.reader._determine_datatype(header))
        size = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
        if len(shape) not in axes or min(shape) < 1 or size > MAX_BYTES:
            known = " or ".join(str(own) for own in axes)
            raise huge("others", f"values with {known} axes, at most {MAX_BYTES >> 20} MiB of them")
        content = _decoded(file.read(MAX_BYTES), str(header["encoding"]), size)
        return header, np.frombuffer(content, dtype, count=size // dtype.itemsize).reshape(shape, order="F")


def _decoded(content: bytes, encoding: str, size: int) -> bytes:
    """The values, never more bytes than the header tells."""
    if encoding == "raw":
        return content[:size]
    if encoding in ("gzip", "gz"):
        return zlib.decompressobj(31).decompress(content, size)
    raise PictureError("unknown-encoding", f"expected raw or gzip, found {encoding}", "Save it again in 3D Slicer")


def _spacing(header: dict) -> float | None:
    if "space directions" in header:
        lengths = [float(np.linalg.norm(np.nan_to_num(axis))) for axis in header["space directions"][:2]]
        return square(lengths[0], lengths[1])
    if "spacings" in header:
        return square(float(header["spacings"][0]), float(header["spacings"][1]))
    return None
