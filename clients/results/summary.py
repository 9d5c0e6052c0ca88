"""What is told of each segmented image in `results.csv`, which a spreadsheet opens."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from common.components import BRANCHES
from common.spreadsheet import plain_cell

#: Dice of the two branches' masks below which a person should look again. A rule of thumb that nobody has validated:
#: branches that found the same structure usually agree far better.
LOOK_AGAIN_DICE = 0.7


@dataclass(frozen=True)
class Row:
    """One image.

    Attributes:
        area_mm2: of the mask; None where the side of a pixel is not known.
        mean_confidence: `|2 p - 1|`, 0 undecided to 1 certain, averaged over the mask; None where it is empty. Not a
            chance of being right.
        branch_dice: agreement of the two branches' masks, 0 to 1; None for a model of one branch.
        look_again: why a person should, or empty.
    """

    image: str
    width_px: int
    height_px: int
    spacing_mm: float | None
    area_px: int
    area_mm2: float | None
    mean_confidence: float | None
    branch_dice: float | None
    look_again: str


def row_of(image: str, maps: Mapping[str, np.ndarray], p: np.ndarray, spacing_mm: float | None) -> Row:
    """Return what is told of an image.

    Args:
        maps: predictor -> foreground probability [H, W], as `clients.released.Model.maps` returns them.
        p: the one of them that is drawn.
    """
    mask = p > 0.5
    area = int(mask.sum())
    agreement = None
    if set(BRANCHES) <= maps.keys():
        one, other = (maps[name] > 0.5 for name in BRANCHES)
        sizes = int(one.sum()) + int(other.sum())
        agreement = round(2 * int((one & other).sum()) / sizes, 3) if sizes else 1.0
    reasons = ["branches disagree"] if agreement is not None and agreement < LOOK_AGAIN_DICE else []
    reasons += [] if area else ["nothing found"]
    return Row(
        image,
        mask.shape[1],
        mask.shape[0],
        None if spacing_mm is None else float(f"{spacing_mm:.6g}"),  # NIfTI has it in float32
        area,
        None if spacing_mm is None else round(area * spacing_mm**2, 2),
        round(float(np.abs(2 * p[mask] - 1).mean()), 3) if area else None,
        agreement,
        "; ".join(reasons),
    )


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV; a name that a spreadsheet would take for a formula gets an apostrophe before it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(asdict(row) | {"image": plain_cell(row.image)})
    path.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")  # names as they are on the disk
