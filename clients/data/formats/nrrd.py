"""NRRD with its values in the same file, raw or gzip: 2D images, and 3D files whose last axis is the frame."""

import zlib
from pathlib import Path

import numpy as np

from clients.data.formats.nifti import MAX_BYTES, frames_of
from clients.data.formats.recording import Recording, huge, reading, square
from clients.data.images import PictureError


def matches(head: bytes) -> bool:
    """Whether a file begins as NRRD."""
    return head.startswith(b"NRRD000")


def read(path: Path) -> Recording:
    """The frames of a NRRD file. Raises PictureError."""
    import nrrd

    with reading("NRRD file"), path.open("rb") as file:
        header = nrrd.read_header(file)
        if any(key in header for key in ("data file", "datafile")):
            # The file it names could be any on this machine.
            raise PictureError("detached-values", "expected the values in the file, found a link", "Save as .nrrd")
        shape = tuple(int(side) for side in header["sizes"])
        dtype = np.dtype(nrrd.reader._determine_datatype(header))
        size = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
        if len(shape) not in (2, 3) or min(shape) < 1 or size > MAX_BYTES:
            raise huge("others", f"values with 2 or 3 axes, at most {MAX_BYTES >> 20} MiB of them")
        content = _decoded(file.read(MAX_BYTES), str(header["encoding"]), size)
        volume = np.frombuffer(content, dtype, count=size // dtype.itemsize).reshape(*shape[:2], -1, order="F")
        spacing = _spacing(header)
        return Recording(lambda: frames_of(volume), volume.shape[2], shape[1], shape[0], spacing_mm=spacing)


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
