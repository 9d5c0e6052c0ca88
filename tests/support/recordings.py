"""Small files of every image format, made as scanners and viewers make them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless, generate_uid

#: A name and a birth date, which may turn up nowhere.
PATIENT_NAME, PATIENT_ID, BIRTH_DATE = "Mueller^Anna", "HOSP-4711", "19870312"
ULTRASOUND_MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.3.1"


def frame(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth grey [H, W] uint8 that JPEG keeps, of the whole range."""
    rows, columns = np.mgrid[:height, :width]
    wave = np.sin(rows / 7 + seed) + np.cos(columns / 9 + 2 * seed)
    return np.rint((wave - wave.min()) / (wave.max() - wave.min()) * 255).astype(np.uint8)


def dicom(
    path: Path,
    frames: np.ndarray,
    *,
    photometric: str = "MONOCHROME2",
    bits: int = 8,
    spacing_mm: float | None = 0.2,
    region: tuple[int, int, int, int] | None = None,
    syntax: str | None = None,
    **tags: Any,
) -> Path:
    """A DICOM file of `frames`, [F, H, W] or [F, H, W, 3]; `region` is top, left, bottom, right."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = ULTRASOUND_MULTI_FRAME
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.PatientName, data.PatientID, data.PatientBirthDate = PATIENT_NAME, PATIENT_ID, BIRTH_DATE
    data.Modality, data.Manufacturer, data.ManufacturerModelName = "US", "Maker", "Model 5"
    data.Rows, data.Columns, data.NumberOfFrames = frames.shape[1], frames.shape[2], len(frames)
    data.SamplesPerPixel = 3 if frames.ndim == 4 else 1
    data.PhotometricInterpretation = photometric
    if frames.ndim == 4:
        data.PlanarConfiguration = 0
    data.BitsAllocated = 8 if bits == 8 else 16
    data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits - 1, 0
    if spacing_mm is not None:
        top, left, bottom, right = region or (0, 0, *frames.shape[1:3])
        item = Dataset()
        item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, 1, 0
        item.RegionLocationMinX0, item.RegionLocationMinY0 = left, top
        item.RegionLocationMaxX1, item.RegionLocationMaxY1 = right - 1, bottom - 1
        item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
        item.PhysicalDeltaX = item.PhysicalDeltaY = spacing_mm / 10
        data.SequenceOfUltrasoundRegions = Sequence([item])
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = frames.astype(np.uint8 if bits == 8 else "<u2").tobytes()
    if syntax == "rle":
        data.compress(RLELossless)
    elif syntax is not None:
        name = {"jpeg": "JPEG", "jpeg2000": "JPEG2000"}[syntax]
        data.file_meta.TransferSyntaxUID = {"JPEG": JPEGBaseline8Bit, "JPEG2000": JPEG2000Lossless}[name]
        data.PixelData = encapsulate([_compressed(own, name) for own in frames])
        data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)
    return path


def _compressed(pixels: np.ndarray, name: str) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 95} if name == "JPEG" else {"irreversible": False, "no_jp2": True}
    Image.fromarray(pixels).save(buffer, name, **options)
    return buffer.getvalue()


def video(path: Path, frames: np.ndarray, **options: str) -> Path:
    """An MP4 or AVI of grey frames [F, H, W], with options of its container."""
    import av

    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:], "yuv420p"
        stream.bit_rate = 4_000_000
        for own in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.repeat(own[..., None], 3, -1)), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path
