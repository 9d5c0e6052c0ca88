"""Every format that a hospital's images come in, a file each. A new one is a module here and a line in `FORMATS`.

A module has `matches(head) -> bool` on a file's first bytes, since names tell little (DICOM files often have no
suffix), and `read(path) -> Recording`. It imports its library in `read`: most people need one format.
"""

from pathlib import Path
from types import ModuleType

from clients.data.findings import remedy_of
from clients.data.formats import dicom, nifti, nrrd, pillow, video
from clients.data.formats.recording import Recording, huge
from clients.data.images import PictureError

FORMATS: tuple[ModuleType, ...] = (pillow, dicom, nifti, nrrd, video)
NAMES = "PNG, JPEG, TIFF, BMP, GIF, DICOM, NIfTI, NRRD, MP4, MOV, AVI"
#: A larger file is a whole examination, or no image at all.
MAX_FILE_BYTES = 2**31


def format_of(path: Path) -> ModuleType:
    """The module of `FORMATS` that reads a file.

    Raises:
        PictureError: `unreadable-image`, `unknown-format` or `huge-image`.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise PictureError(
            "unreadable-image", f"expected to read the file, found: {error.strerror}", remedy_of(error)
        ) from None
    for own in FORMATS:
        if own.matches(head):
            if size > MAX_FILE_BYTES:
                raise huge(f"{size >> 20} MiB", f"at most {MAX_FILE_BYTES >> 20}")
            return own
    if not size:
        raise PictureError("unreadable-image", "expected an image or a loop, found an empty file", "Copy it again")
    raise PictureError("unknown-format", f"expected one of {NAMES}; found another kind of file", "Export it again")


def open_recording(path: Path) -> Recording:
    """The frames of an image or a cine loop, decoded one after the other as they are asked for.

    Raises:
        PictureError: as `format_of`, or another that the format gives its reason for. Frames raise it too, while they
            are decoded.
    """
    recording: Recording = format_of(path).read(path)
    return recording
