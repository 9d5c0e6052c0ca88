"""DICOM Segmentation for DICOM input: 3D Slicer, OHIF and other viewers lay it over the images it refers to.

It names the patient and the study as its input does, or no archive could file it; it goes where the input may go.
"""

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clients.data.formats.dicom import spacing_of
from clients.data.images import PictureError
from clients.results.masks import Masks
from common.version import software_version

if TYPE_CHECKING:
    from highdicom.seg import Segmentation
    from pydicom import Dataset

#: Ultrasound Image Storage: stills.
_STILL = "1.2.840.10008.5.1.4.1.1.6.1"
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
        """Write the object. Raises PictureError `no-dicom-reference`, and what highdicom raises for other headers."""
        from pydicom import dcmread

        header = dcmread(self.source, stop_before_pixels=True)
        missing = [tag for tag in _NEEDED if not header.get(tag)]
        if missing:
            raise PictureError(
                "no-dicom-reference",
                f"expected {', '.join(missing)} in the file, which a DICOM Segmentation refers to, found none",
                "Use the masks, which are written, or export the file from the archive",
            )
        masks = self.masks.stacked()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        made = _of_one_frame(header, masks[0], self.model)
        _take_all_frames(made, header, masks)
        _place(made, spacing_of(header))
        made.save_as(self.file)
        return self.file


def _of_one_frame(header: "Dataset", mask: np.ndarray, model: str) -> "Segmentation":
    """The object for a still image; highdicom makes it for no loop without a place in space, as ultrasound's are."""
    import highdicom
    from pydicom.sr.codedict import codes

    still = deepcopy(header)
    still.SOPClassUID = _STILL
    for tag in _MAY_BE_EMPTY:
        if tag not in still:
            setattr(still, tag, None)
    structure, version = codes.SCT.AnatomicalStructure, software_version()
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=f"CrossProbe {model}", version=version, family=codes.DCM.ArtificialIntelligence
    )
    segment = highdicom.seg.SegmentDescription(1, model, structure, structure, "AUTOMATIC", algorithm)
    return highdicom.seg.Segmentation(
        [still],
        mask,
        "BINARY",
        [segment],
        series_instance_uid=highdicom.UID(),
        series_number=100,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="CrossProbe",
        manufacturer_model_name=model,
        software_versions=version,
        device_serial_number="0",  # the standard wants one, software has none
        content_description="research, no medical device",
        omit_empty_frames=False,
    )


def _take_all_frames(made: "Segmentation", header: "Dataset", masks: np.ndarray) -> None:
    """Give an object of one frame those of the whole loop, [F, H, W], each with a reference to its source frame."""
    from pydicom import Dataset
    from pydicom.pixels import pack_bits

    instance = made.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    first = made.PerFrameFunctionalGroupsSequence[0]
    source = first.DerivationImageSequence[0].SourceImageSequence[0]
    for reference in (instance, made.SourceImageSequence[0], source):
        reference.ReferencedSOPClassUID = header.SOPClassUID
    if len(masks) == 1 and "Multi-frame" not in header.SOPClassUID.name:
        source.pop("ReferencedFrameNumber", None)  # for multi-frame objects alone
        return
    index = Dataset()  # the frames' order, as the standard's other multi-frame objects have it
    index.DimensionOrganizationUID = made.DimensionOrganizationSequence[0].DimensionOrganizationUID
    index.DimensionIndexPointer, index.FunctionalGroupPointer = 0x00209057, 0x00209111  # InStackPositionNumber
    index.DimensionDescriptionLabel = "Frame"
    made.DimensionIndexSequence.append(index)
    groups = []
    for number in range(1, len(masks) + 1):
        group = deepcopy(first)
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = number
        content = group.FrameContentSequence[0]
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", number, [1, number]
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = groups
    made.NumberOfFrames = len(masks)
    made.PixelData = pack_bits(masks, pad=True)


def _place(made: "Segmentation", spacing_mm: float | None) -> None:
    """Give the frames a place: viewers draw nothing without one, and ultrasound has none in the patient.

    It is in a space of its own, by a new frame of reference, which nothing else is in: it tells of no place in the
    patient. Frames of a loop lie one behind the other, a millimetre apart.
    """
    import highdicom
    from pydicom import Dataset

    made.FrameOfReferenceUID, made.PositionReferenceIndicator = highdicom.UID(), None
    made.PatientOrientation = None  # not known (PS3.3 C.7.6.1, type 2C)
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing = [spacing_mm or 1.0] * 2
    measures.SliceThickness = measures.SpacingBetweenSlices = 1.0
    shared = made.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    for number, group in enumerate(made.PerFrameFunctionalGroupsSequence):
        position = Dataset()
        position.ImagePositionPatient = [0, 0, number]
        group.PlanePositionSequence = [position]
