"""A DICOM Segmentation has what its Information Object Definition asks for (PS3.3 A.51), and nothing else.

By the standard's own tables, which highdicom carries as JSON; it writes the object, but checks only parts of it.
"""

import json
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from recordings import dicom, frame

from clients.results.dicom import DicomSegmentation

#: Macros that stand either once for all frames or in each. The plane's and the measures' are asked for by viewers: the
#: standard does without them where each frame tells the image that it was derived from (PS3.3 table A.51-2).
ONCE_OR_EACH = {
    "DerivationImageSequence", "FrameContentSequence", "SegmentIdentificationSequence",
    "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
}  # fmt: skip
#: In microscopy alone.
NOT_ASKED = {"PlanePositionSlideSequence"}
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


@cache
def table(name: str) -> Any:
    content = pkgutil.get_data("highdicom", f"_standard/{name}.json")
    assert content
    return json.loads(content)


def modules(data: Dataset) -> Iterator[list[dict[str, Any]]]:
    """The attributes of each module that the object has to have, or has any of."""
    for module in table("iod_module_map")[table("sop_class_iod_map")[data.SOPClassUID]]:
        attributes = table("module_attribute_map")[module["key"]]
        if module["usage"] == "M" or any(not own["path"] and own["keyword"] in data for own in attributes):
            yield attributes


def problems(data: Dataset, attributes: list[dict[str, Any]], path: list[str]) -> Iterator[str]:
    """Attributes of type 1 and 2 that are missing, and those of type 1 that are empty, below a path."""
    for own in attributes:
        keyword, kind = own["keyword"], own["type"]
        if own["path"] != path:
            continue
        place = ".".join([*path, keyword])
        if keyword not in data:
            group = path in ([name] for name in GROUPS) and keyword in ONCE_OR_EACH | NOT_ASKED
            if kind in ("1", "2") and not group:
                yield f"{place} is missing"
        elif data[keyword].is_empty:
            if kind in ("1", "1C"):
                yield f"{place} is empty"
        elif data[keyword].VR == "SQ":
            for item in data[keyword].value:
                yield from problems(item, attributes, [*path, keyword])


def of(data: Dataset) -> list[str]:
    known = [own for attributes in modules(data) for own in attributes]
    found = [problem for attributes in modules(data) for problem in problems(data, attributes, [])]
    strange = {own.keyword for own in data} - {own["keyword"] for own in known if not own["path"]}
    shared, each = data.SharedFunctionalGroupsSequence[0], data.PerFrameFunctionalGroupsSequence
    lost = {name for name in ONCE_OR_EACH if name not in shared and not all(name in own for own in each)}
    return found + [f"{name} is of no module" for name in strange] + [f"{name} is missing" for name in lost]


@pytest.fixture(params=[1, 3])
def segmentation(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    """What is written for a DICOM file of one frame, or of three."""
    uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    source = dicom(tmp_path / "scan", np.stack([frame(number) for number in range(request.param)]), **uids)
    writer = DicomSegmentation(source, tmp_path / "out", "scan", "study")
    for _ in range(request.param):
        mask = np.zeros((48, 64), bool)
        mask[10:20, 10:30] = True
        writer.add(mask, np.zeros((48, 64, 3), np.uint8))
    writer.close()
    return dcmread(writer.file)


def test_a_segmentation_has_every_attribute_that_its_definition_asks_for(segmentation: Dataset) -> None:
    assert of(segmentation) == []


@pytest.mark.parametrize(
    ("at", "keyword"),
    [
        (lambda data: data, "SegmentationType"),
        (lambda data: data, "PatientBirthDate"),
        (lambda data: data.SegmentSequence[0], "SegmentLabel"),
        (lambda data: data.PerFrameFunctionalGroupsSequence[0], "DerivationImageSequence"),
        (lambda data: data.PerFrameFunctionalGroupsSequence[0], "PlanePositionSequence"),
        (lambda data: data.SharedFunctionalGroupsSequence[0], "PlaneOrientationSequence"),
        (lambda data: data.SharedFunctionalGroupsSequence[0], "SegmentIdentificationSequence"),
        (lambda data: data.ReferencedSeriesSequence[0], "SeriesInstanceUID"),
    ],
)
def test_a_missing_attribute_would_be_seen(segmentation: Dataset, at: Any, keyword: str) -> None:
    del at(segmentation)[keyword]
    (problem,) = of(segmentation)
    assert problem.endswith(f"{keyword} is missing")


def test_what_belongs_to_another_kind_of_object_would_be_seen(segmentation: Dataset) -> None:
    segmentation.KVP = 120
    segmentation.SegmentSequence[0].SegmentLabel = ""
    assert sorted(of(segmentation)) == ["KVP is of no module", "SegmentSequence.SegmentLabel is empty"]
