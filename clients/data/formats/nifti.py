"""NIfTI-1 and -2, plain or compressed: 2D images, and 3D files whose last axis is the frame."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clients.data.formats.recording import Pixels, Recording, huge, reading, scaled, square
from clients.data.images import PictureError

MAGIC = (b"n+1\0", b"n+2\0")
#: A volume is decoded whole: its values have one scale.
MAX_BYTES = 2**28
_TO_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}


def matches(head: bytes) -> bool:
    """Whether a file begins as NIfTI, or as a compressed one."""
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(31).decompress(head, 512)
        except zlib.error:
            return False
    return head[344:348] in MAGIC or head[4:8] in MAGIC


def read(path: Path) -> Recording:
    """The frames of a NIfTI file, rows downwards as the second axis. Raises PictureError."""
    with reading("NIfTI file"):
        with _opened(path) as file:
            header = _header(file)
            shape = tuple(int(side) for side in header.get_data_shape() if side != 1)
            dtype = header.get_data_dtype()
            size = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
            if len(shape) not in (2, 3) or min(shape) < 1 or dtype.fields or size > MAX_BYTES:
                raise huge("others", f"plain values with 2 or 3 axes, at most {MAX_BYTES >> 20} MiB of them")
            start = int(header.get_data_offset())
            if not 0 <= start <= MAX_BYTES:  # what is packed would be unpacked up to there
                raise huge(f"values that begin at byte {start}", "values that begin behind the header")
            file.seek(0)
            content = file.read(start + size)
        volume = np.frombuffer(content, dtype, offset=start, count=size // dtype.itemsize)
        volume = volume.reshape(*shape[:2], -1, order="F")
        zooms = header.get_zooms()
        mm = _TO_MM.get(header.get_xyzt_units()[0], 1.0)
        spacing = square(float(zooms[0]) * mm, float(zooms[1]) * mm)
        return Recording(lambda: frames_of(volume), volume.shape[2], shape[1], shape[0], spacing_mm=spacing)


def read_header(path: Path) -> Any:
    """The header of a NIfTI file, as nibabel has it. Raises PictureError."""
    with reading("NIfTI file"), _opened(path) as file:
        return _header(file)


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]  # typeshed's GzipFile


def _header(file: BinaryIO) -> Any:
    import nibabel

    head = file.read(540)
    large = head[4:8] in MAGIC
    kind: Any = nibabel.Nifti2Header if large else nibabel.Nifti1Header
    return kind(head[:540] if large else head[:348])


def frames_of(volume: np.ndarray) -> Iterator[Pixels]:
    """The frames [H, W] of values [W, H, F], scaled from their least to their largest unless they are uint8."""
    low, high = (0.0, 255.0) if volume.dtype == np.uint8 else (float(volume.min()), float(volume.max()))
    if not np.isfinite([low, high]).all():
        raise PictureError("not-finite", "expected finite values, found NaN or infinity", "Export it again")
    for index in range(volume.shape[2]):
        yield scaled(volume[..., index].T, low, high)
