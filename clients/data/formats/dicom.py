"""DICOM: single and multi-frame, grey, inverted, RGB, YBR and palette; spacing and field of view of the scanner.

Only the listed tags are read from the file at all. Compressed pixels are decoded by Pillow or GDCM, frame by frame.
"""

import logging
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clients.data.formats.recording import Field, Pixels, Recording, huge, reading, scaled, square
from clients.data.images import PictureError

if TYPE_CHECKING:
    from pydicom import Dataset

#: All that is read. The patient's id is only ever used as the input of a keyed hash.
TAGS = (
    "PatientID",
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "SequenceOfUltrasoundRegions",
    "PixelSpacing",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "PixelData",
)
#: Ultrasound, and the two that frame grabbers write.
MODALITIES = ("US", "IVUS", "OT", "SC", "")
#: Where what the group length counts begins: after preamble, mark and the element of the length itself (PS3.10 7.1).
_META_START = 144
#: More than a minute of grey frames, packed as a whole.
MAX_DEFLATED_BYTES = 2**28
_TISSUE, _TWO_DIMENSIONAL, _CENTIMETRES = 1, 1, 3


def matches(head: bytes) -> bool:
    """Whether a file has DICOM's mark after its 128 bytes of preamble."""
    return head[128:132] == b"DICM"


def read(path: Path) -> Recording:
    """The frames of a DICOM file. Raises PictureError."""
    from pydicom import dcmread

    with reading("DICOM file"):
        _quieten()
        _check_deflated(path)
        data = dcmread(path, specific_tags=list(TAGS))
        modality = str(data.get("Modality", ""))
        if modality not in MODALITIES:
            raise PictureError("no-ultrasound", f"expected ultrasound, found modality {modality}", "Leave it out")
        if "PixelData" not in data:
            raise PictureError("no-pixels", "expected an image, found a DICOM object without pixels", "Leave it out")
        height, width = int(data.Rows), int(data.Columns)
        region = _region(data)
        maker = [str(data.get(tag) or "").strip() for tag in ("Manufacturer", "ManufacturerModelName")]
        return Recording(
            lambda: _frames(data),
            int(data.get("NumberOfFrames") or 1),
            height,
            width,
            spacing_mm=spacing_of(data),
            field=region[0].within(height, width) if region else None,
            patient=str(data.get("PatientID") or "").strip(),
            device=" ".join(maker).strip(),
        )


def _check_deflated(path: Path) -> None:
    """A file may be packed as a whole, and unpack to any size; the library unpacks all of it at once."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    unpacker, size = zlib.decompressobj(-15), 0
    with path.open("rb") as file:
        file.seek(_META_START + int(meta.FileMetaInformationGroupLength))
        while not unpacker.eof and (part := unpacker.unconsumed_tail or file.read(2**16)):
            size += len(unpacker.decompress(part, 2**20))
            if size > MAX_DEFLATED_BYTES:
                raise huge("more", f"at most {MAX_DEFLATED_BYTES >> 20} MiB once it is unpacked")


def _quieten() -> None:
    """The library's warnings quote the values that they are about, names of patients among them."""
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def _region(data: "Dataset") -> tuple[Field, tuple[float, float]] | None:
    """The largest B-mode region with a scale in cm: its place, and the sides of its pixels in mm (PS3.3 C.8.5.5)."""
    found = []
    for item in data.get("SequenceOfUltrasoundRegions") or ():
        kind = (item.get("RegionSpatialFormat"), item.get("RegionDataType"))
        units = (item.get("PhysicalUnitsXDirection"), item.get("PhysicalUnitsYDirection"))
        if kind == (_TWO_DIMENSIONAL, _TISSUE) and units == (_CENTIMETRES, _CENTIMETRES):
            field = Field(
                int(item.RegionLocationMinY0),
                int(item.RegionLocationMinX0),
                int(item.RegionLocationMaxY1) + 1,
                int(item.RegionLocationMaxX1) + 1,
            )
            found.append((field, (abs(item.PhysicalDeltaX) * 10, abs(item.PhysicalDeltaY) * 10)))
    return max(found, key=lambda region: region[0].area, default=None)


def spacing_of(data: "Dataset") -> float | None:
    """The side of a pixel in mm, as the header tells it, or None."""
    if region := _region(data):
        return square(*region[1])
    given = data.get("PixelSpacing")
    return square(float(given[1]), float(given[0])) if given else None


def _frames(data: "Dataset") -> Iterator[Pixels]:
    from pydicom.pixels import apply_color_lut, iter_pixels

    with reading("DICOM image"):
        kind = str(data.PhotometricInterpretation)
        for frame in iter_pixels(data):  # YBR comes as RGB
            if kind == "PALETTE COLOR":
                yield _colours(apply_color_lut(frame, data))
            else:
                yield _grey(frame, data, kind) if data.SamplesPerPixel == 1 else _colours(frame)


def _grey(frame: np.ndarray, data: "Dataset", kind: str) -> Pixels:
    if data.PixelRepresentation != 0:
        raise PictureError("signed-pixels", "expected grey from 0, found signed values", "Export with 8 bits")
    top = 2 ** int(data.BitsStored) - 1
    grey = frame.astype(np.uint8) if top == 255 else scaled(frame, 0, top)
    return np.uint8(255) - grey if kind == "MONOCHROME1" else grey


def _colours(frame: np.ndarray) -> Pixels:
    return frame.astype(np.uint8) if frame.dtype == np.uint8 else (frame >> 8).astype(np.uint8)
