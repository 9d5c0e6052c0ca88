"""A site's manifest.csv: its rows, the checks that need no picture, and the split of patients."""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from clients.data.findings import Finding
from clients.data.pseudonyms import personal, placeholder
from clients.data.table import Line, read_table
from common.components import Role, Split
from common.spreadsheet import decimal

SPLITS: tuple[Split, ...] = get_args(Split)
COLUMNS = ("image", "mask", "patient", "video", "frame", "device", "spacing_mm", "split")
REQUIRED = ("image", "patient")

# Below 5 um or above 5 mm a pixel is no ultrasound pixel: most likely metres, cm or dpi were given.
SPACING_MM = (0.005, 5.0)

Fractions = Sequence[tuple[Split, float]]
SOURCE_FRACTIONS: Fractions = (("train", 0.60), ("calibrate", 0.15), ("val", 0.10), ("test", 0.15))
# No calibrate and no test: both need masks, and a target's unlabelled frames have none.
TARGET_FRACTIONS: Fractions = (("train", 0.85), ("val", 0.15))


@dataclass(frozen=True)
class Row:
    """One row as written; a cell that could not be read holds a placeholder and left a finding."""

    where: str
    image: str
    mask: str
    patient: str
    video: str
    frame: int
    device: str
    spacing_mm: float | None
    split: Split | None


def split_of_patient(patient: str, fractions: Fractions, *, salt: str = "") -> Split:
    """The split of a patient by a hash of the id alone, so that a new patient moves nobody else.

    `fractions` lists (split, fraction) and sums to 1; another `salt` draws another split.
    """
    digest = hashlib.sha256((salt + patient).encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    reached = 0.0
    for split, fraction in fractions:
        reached += fraction
        if position < reached:
            return split
    return fractions[-1][0]  # the fractions' sum may be one rounding error short of 1


def read_manifest(path: Path, findings: list[Finding]) -> list[Row]:
    """The rows of a manifest.csv; whatever is wrong with it is appended to `findings`."""
    return [_row(line, findings) for line in read_table(path, COLUMNS, REQUIRED, findings)]


def check_rows(rows: Sequence[Row], role: Role | None, findings: list[Finding]) -> None:
    """Checks that need the whole table; `role` is None where site.yaml does not tell it."""
    _check_single(
        ((row, row.patient, row.split) for row in rows),
        "patient-in-two-splits",
        lambda patient: f"expected one split for all frames of patient {patient}",
        "Give all rows of the patient the same split, or leave the split of all empty",
        findings,
    )
    _check_single(
        ((row, row.video, row.patient) for row in rows),
        "video-of-two-patients",
        lambda video: f"expected one patient for video {video}",
        "Correct the patient, or give the two videos different names",
        findings,
    )
    patients = {row.patient for row in rows}
    if rows and len(patients) == 1:
        findings.append(
            Finding(
                "one-patient",
                "manifest.csv",
                f"expected several patients, found all {len(rows)} images to be of one",
                "Give each row its own patient: patients are the unit of splits and of privacy",
            )
        )
    spaced = [row for row in rows if row.spacing_mm is not None]
    if spaced and len(spaced) < len(rows):
        bare = next(row for row in rows if row.spacing_mm is None)
        findings.append(
            Finding(
                "mixed-spacing",
                bare.where,
                f"expected spacing_mm in all rows or in none, found it in {len(spaced)} of {len(rows)}, and not here",
                "Fill it in for all, or leave it empty for all (then there are no distances in mm)",
            )
        )
    for row in rows if role == "source" else ():
        if not row.mask:
            findings.append(
                Finding(
                    "unlabelled-at-source",
                    row.where,
                    "expected a mask (role: source), found an empty cell",
                    "Name the mask, remove the row, or make the site a target",
                )
            )


def assign_splits(rows: Sequence[Row], role: Role | None) -> dict[str, Split]:
    """The split of each patient: the one its rows name, else one by `split_of_patient`.

    A target's patient with masks and no split goes to test, the only use its masks may have.
    """
    named = {row.patient: row.split for row in reversed(rows) if row.split is not None}
    masked = {row.patient for row in rows if row.mask}
    splits: dict[str, Split] = {}
    for patient in dict.fromkeys(row.patient for row in rows):
        if patient in named:
            splits[patient] = named[patient]
        elif role == "target" and patient in masked:
            splits[patient] = "test"
        else:
            fractions = TARGET_FRACTIONS if role == "target" else SOURCE_FRACTIONS
            splits[patient] = split_of_patient(patient, fractions)
    return splits


def _row(line: Line, findings: list[Finding]) -> Row:
    cell = line.cells
    where = f"manifest.csv line {line.number} ({cell['image']})"

    def wrong(code: str, expected: str, found: str, remedy: str) -> None:
        findings.append(Finding(code, where, f"expected {expected}, found {found!r}", remedy))

    if not cell["patient"]:
        wrong(
            "empty-patient",
            "a patient id",
            "",
            "Give each image its patient, as a pseudonym; frames of one patient stay together",
        )
    elif reason := personal(cell["patient"]):
        wrong(
            "personal-patient",
            "a pseudonym",
            cell["patient"],
            f"It looks like {reason}. Give each patient a number of your own, and keep the list of them elsewhere",
        )
    elif reason := placeholder(cell["patient"]):
        wrong(
            "placeholder-patient",
            "an id of one patient",
            cell["patient"],
            f"It is {reason}: several people may have it. Give each patient a number of your own",
        )
    frame = 0
    if re.fullmatch("[0-9]{1,9}", cell["frame"]):
        frame = int(cell["frame"])
    elif cell["frame"]:
        wrong(
            "bad-frame",
            "a whole number from 0 or an empty cell",
            cell["frame"],
            "Give the place of the frame in its video, counted from 0",
        )
    spacing_mm = _spacing(cell["spacing_mm"])
    if spacing_mm is not None and not SPACING_MM[0] <= spacing_mm <= SPACING_MM[1]:
        wrong(
            "bad-spacing",
            f"millimetres per pixel from {SPACING_MM[0]} to {SPACING_MM[1]}",
            cell["spacing_mm"],
            "Give the side of a pixel in mm, or leave it empty in all rows",
        )
    split = next((known for known in SPLITS if known == cell["split"].lower()), None)
    if cell["split"] and split is None:
        wrong(
            "bad-split",
            f"one of {', '.join(SPLITS)} or an empty cell",
            cell["split"],
            "Correct it, or leave it empty to have the patient assigned",
        )
    return Row(
        where=where,
        image=cell["image"].replace("\\", "/"),  # as Windows writes paths
        mask=cell["mask"].replace("\\", "/"),
        patient=cell["patient"],
        video=cell["video"],
        frame=frame,
        device=cell["device"],
        spacing_mm=spacing_mm,
        split=split,
    )


def _spacing(text: str) -> float | None:
    """The number in a cell, None for an empty one, NaN (within no range) for what is no number."""
    if not text:
        return None
    try:
        return decimal(text)
    except ValueError:
        return math.nan


def _check_single(
    entries: Iterable[tuple[Row, str, str | None]],
    code: str,
    expected: Callable[[str], str],
    remedy: str,
    findings: list[Finding],
) -> None:
    """One finding, at the first row that differs, for each key with more than one value."""
    seen: defaultdict[str, dict[str, Row]] = defaultdict(dict)
    for row, key, value in entries:
        if key and value:
            seen[key].setdefault(value, row)
    for key, values in seen.items():
        if len(values) > 1:
            second = list(values.values())[1]
            message = f"{expected(key)}, found {', '.join(values)}"
            findings.append(Finding(code, second.where, message, remedy))
