"""Whole, small files of every format that is read: what the bad ones are made from."""

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH, FRAMES = 48, 64, 3


def speckle(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Grey noise [H, W] that a field of view is found in."""
    return np.clip(np.random.default_rng(seed).rayleigh(60, (height, width)), 16, 255).astype(np.uint8)


def loop() -> np.ndarray:
    """A few frames [F, H, W]."""
    return np.stack([speckle(seed) for seed in range(FRAMES)])


def outline() -> np.ndarray:
    """A mask, bool [H, W]."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[12:30, 20:44] = True
    return mask


def picture(format_name: str, mode: str = "L", frames: int = 1, **options: Any) -> bytes:
    """A file that Pillow writes."""
    pictures = [Image.fromarray(own).convert(mode) for own in loop()[:frames]]
    more = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    buffer = io.BytesIO()
    pictures[0].save(buffer, format_name, **more, **options)
    return buffer.getvalue()


@cache
def png_of(seed: int) -> bytes:
    """A grey PNG that no other seed gives."""
    buffer = io.BytesIO()
    Image.fromarray(speckle(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def sixteen_bits() -> bytes:
    """A PNG of 16 bits."""
    buffer = io.BytesIO()
    Image.fromarray(speckle(0).astype(np.uint16) * 257).save(buffer, "PNG")
    return buffer.getvalue()


def dicom(syntax: str = "plain", **tags: Any) -> bytes:
    """An ultrasound loop as DICOM: plain, rle, jpeg, jpeg2000, deflated or palette."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.sequence import Sequence
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGBaseline8Bit,
        RLELossless,
    )

    data, region = Dataset(), Dataset()
    data.file_meta = FileMetaDataset()
    deflated = DeflatedExplicitVRLittleEndian if syntax == "deflated" else ExplicitVRLittleEndian
    data.file_meta.TransferSyntaxUID = deflated
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3.4"
    data.PatientID, data.Modality, data.Manufacturer = "4711", "US", "Maker"
    data.Rows, data.Columns, data.NumberOfFrames = HEIGHT, WIDTH, FRAMES
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = 1, 8, 8, 7
    data.PixelRepresentation, data.PhotometricInterpretation = 0, "MONOCHROME2"
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = WIDTH - 1, HEIGHT - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.05
    data.SequenceOfUltrasoundRegions = Sequence([region])
    if syntax == "palette":
        data.PhotometricInterpretation = "PALETTE COLOR"
        for name in ("Red", "Green", "Blue"):
            setattr(data, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
            setattr(data, f"{name}PaletteColorLookupTableData", np.arange(0, 65536, 256, dtype="<u2").tobytes())
    data.PixelData = loop().tobytes()
    if syntax == "rle":
        data.compress(RLELossless)
    if syntax in ("jpeg", "jpeg2000"):
        options: dict[str, Any] = {} if syntax == "jpeg" else {"irreversible": False, "no_jp2": True}
        frames = [picture(syntax.upper(), **options) for _ in range(FRAMES)]
        data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if syntax == "jpeg" else JPEG2000Lossless
        data.PixelData = encapsulate(frames)
        data["PixelData"].is_undefined_length = True
    for name, value in tags.items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def nifti(packed: bool) -> bytes:
    """A loop as NIfTI-1."""
    import gzip

    import nibabel

    content: bytes = nibabel.Nifti1Image(loop().T, np.diag([0.5, 0.5, 1, 1])).to_bytes()
    return gzip.compress(content) if packed else content


def nrrd(values: np.ndarray, **header: str) -> bytes:
    """Values [x, y, z] as NRRD."""
    import nrrd

    with TemporaryDirectory() as folder:
        nrrd.write(f"{folder}/a.nrrd", values, header)
        return Path(f"{folder}/a.nrrd").read_bytes()


def segmentation() -> bytes:
    """A segmentation as 3D Slicer writes it."""
    segments = {"Segment0_ID": "s", "Segment0_Name": "bone", "Segment0_LabelValue": "1", "Segment0_Layer": "0"}
    offset = {"Segmentation_ReferenceImageExtentOffset": "0 0 0"}
    return nrrd(np.repeat(outline().T[..., None], FRAMES, -1).astype(np.uint8), **segments, **offset)


def video(suffix: str) -> bytes:
    """A loop as MP4, MOV or AVI."""
    import av

    with TemporaryDirectory() as folder:
        with av.open(f"{folder}/a.{suffix}", "w") as container:
            stream: Any = container.add_stream("mpeg4", rate=10)
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
            for own in loop():
                rgb = np.repeat(own[..., None], 3, -1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            container.mux(stream.encode(None))
        return Path(f"{folder}/a.{suffix}").read_bytes()


def coco() -> dict[str, Any]:
    """A COCO file of one image."""
    polygon = [20, 12, 44, 12, 44, 30, 20, 30]
    runs = {"size": [HEIGHT, WIDTH], "counts": [20 * HEIGHT, 5, HEIGHT * (WIDTH - 20) - 5]}
    return {
        "images": [{"id": 1, "file_name": "scan.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "segmentation": [polygon]},
            {"image_id": 1, "category_id": 1, "segmentation": runs},
        ],
    }


MAKERS: dict[str, Callable[[], bytes]] = {
    "png": lambda: picture("PNG"),
    "png of 16 bits": sixteen_bits,
    "png with colour": lambda: picture("PNG", "RGB"),
    "png with palette": lambda: picture("PNG", "P"),
    "png with alpha": lambda: picture("PNG", "RGBA"),
    "animated png": lambda: picture("PNG", frames=FRAMES),
    "jpeg": lambda: picture("JPEG"),
    "jpeg with colour": lambda: picture("JPEG", "RGB"),
    "tiff": lambda: picture("TIFF"),
    "tiff of pages": lambda: picture("TIFF", frames=FRAMES, compression="tiff_lzw"),
    "tiff deflated": lambda: picture("TIFF", compression="tiff_adobe_deflate"),
    "bmp": lambda: picture("BMP"),
    "gif": lambda: picture("GIF", frames=FRAMES),
    "mp4": lambda: video("mp4"),
    "mov": lambda: video("mov"),
    "avi": lambda: video("avi"),
    "dicom": dicom,
    "dicom, rle": lambda: dicom("rle"),
    "dicom, jpeg": lambda: dicom("jpeg"),
    "dicom, jpeg2000": lambda: dicom("jpeg2000"),
    "dicom, deflated": lambda: dicom("deflated"),
    "dicom, palette": lambda: dicom("palette"),
    "nifti": lambda: nifti(False),
    "nifti, gzip": lambda: nifti(True),
    "nrrd": lambda: nrrd(loop().T, encoding="raw"),
    "nrrd, gzip": lambda: nrrd(loop().T, encoding="gzip"),
}
MASK_MAKERS: dict[str, Callable[[], bytes]] = {
    "seg.nrrd": segmentation,
    "mask as nrrd": lambda: nrrd(np.repeat(outline().T[..., None], FRAMES, -1).astype(np.uint8)),
    "mask as png": lambda: _mask_png(),
}


@cache
def whole(kind: str) -> bytes:
    """The whole file of a kind in `MAKERS` or `MASK_MAKERS`."""
    return {**MAKERS, **MASK_MAKERS}[kind]()


def coco_text() -> bytes:
    """`coco` as JSON."""
    return json.dumps(coco()).encode()


def _mask_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(outline().astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()
