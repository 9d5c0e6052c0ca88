"""DICOM Segmentation for DICOM input: 3D Slicer, OHIF and other viewers lay it over the images it refers to.

It names the patient and the study as its input does, or no archive could file it; it goes where the input may go.
"""

from pathlib import Path

import numpy as np

from clients.data.images import PictureError
from clients.results.masks import Masks
from common.version import software_version

#: An object refers to its images by these; without them it would hang in the air.
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
#: May be empty but not missing (PS3.3 C.7.1.1 and C.7.2.1, type 2); scanners leave them out all the same.
_MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


class DicomSegmentation:
    """`segmentations/NAME.seg.dcm`: one binary segment, a frame for each frame of the input."""

    def __init__(self, source: Path, out: Path, name: str, model: str) -> None:
        self.source, self.model, self.masks = source, model, Masks()
        self.file = out / "segmentations" / f"{name}.seg.dcm"

    def add(self, mask: np.ndarray, overlay: np.ndarray) -> None:
        """Take a frame's mask, bool [H, W]."""
        self.masks.add(mask)

    def close(self) -> Path:
        """Write the object. Raises PictureError `no-dicom-reference` or `no-dicom-segmentation`."""
        import highdicom
        from pydicom import dcmread
        from pydicom.sr.codedict import codes

        header = dcmread(self.source, stop_before_pixels=True)
        missing = [tag for tag in _NEEDED if not header.get(tag)]
        if missing:
            raise PictureError(
                "no-dicom-reference",
                f"expected {', '.join(missing)} in the file, which a DICOM Segmentation refers to, found none",
                "Use the masks, which are written, or export the file from the archive",
            )
        for tag in _MAY_BE_EMPTY:
            if tag not in header:
                setattr(header, tag, None)
        structure, version = codes.SCT.AnatomicalStructure, software_version()
        description = highdicom.seg.SegmentDescription(
            1,
            self.model,
            structure,
            structure,
            "AUTOMATIC",
            highdicom.AlgorithmIdentificationSequence(
                name=f"CrossProbe {self.model}", version=version, family=codes.DCM.ArtificialIntelligence
            ),
        )
        masks = self.masks.stacked()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            made = highdicom.seg.Segmentation(
                [header],
                masks,
                "BINARY",
                [description],
                series_instance_uid=highdicom.UID(),
                series_number=100,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="CrossProbe",
                manufacturer_model_name=self.model,
                software_versions=version,
                device_serial_number="0",  # the standard wants one, software has none
                content_description="research, no medical device",
                omit_empty_frames=False,
            )
            made.save_as(self.file)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # whatever else a header lacks
            raise PictureError(
                "no-dicom-segmentation",
                f"expected a header that a DICOM Segmentation can be made for, found one that cannot ({error})"[:300],
                "Use the masks, which are written",
            ) from None
        return self.file
