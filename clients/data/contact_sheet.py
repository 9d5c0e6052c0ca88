"""A page on a site's folder for the person who answers for it: findings, numbers, images with outlines.

It holds images and the folder's own names, and it stays at the site.
"""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from clients.data.findings import EXAMPLES, Finding
from clients.data.frames import Frame, read_image, read_mask
from clients.data.images import outline
from clients.data.manifest import SPLITS
from clients.data.site import Site
from clients.data.statistics import look_at, remarks, table
from common.files import write_atomically

TEMPLATE = "contact_sheet.html.j2"
#: Where templates lie: the pages' colours are shared by all parts.
FOLDERS = (Path(__file__).parent, Path(__file__).parents[2] / "common")
#: Pictures on the page in all, and of one remark; a page of thousands opens nowhere.
MOST_PICTURES, MOST_OF_A_REMARK = 160, 8
SIDE = 168
OUTLINE = (255, 149, 0)


@dataclass(frozen=True)
class Picture:
    """A thumbnail with its words."""

    png: str
    patient: str
    words: str


def write_sheet(path: Path, folder: Path, site: Site | None, findings: Sequence[Finding]) -> None:
    """Write the page for its owner alone; without a site (there are findings) it holds the findings.

    Raises:
        RunError: if it cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDERS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    content = environment.get_template(TEMPLATE).render(contact_sheet(folder, site, findings))
    write_atomically(path, content.encode(), then="check again")


def contact_sheet(
    folder: Path,
    site: Site | None,
    findings: Sequence[Finding],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, object]:
    """Return what `contact_sheet_body.html.j2` shows; every image is opened once or twice.

    Args:
        progress: of the images, called with how many are done and how many there are.
    """
    shown: dict[str, object] = {"rows": [], "remarks": [], "splits": []}
    if site is not None:
        looks = look_at(site, progress)
        shown = {
            "rows": table(site, looks),
            "remarks": [
                (remark.what, len(remark.frames), [_picture(frame, site) for frame in remark.frames[:MOST_OF_A_REMARK]])
                for remark in remarks(looks)
            ],
            "splits": list(_splits(site)),
        }
    return shown | {"folder": folder.name, "site": site, "groups": _groups(findings), "examples": EXAMPLES}


def _groups(findings: Sequence[Finding]) -> list[tuple[str, int, list[Finding]]]:
    codes = list(dict.fromkeys(finding.code for finding in findings))
    by_code = [(code, [finding for finding in findings if finding.code == code]) for code in codes]
    return [(code, len(own), own[:EXAMPLES]) for code, own in by_code]


def _splits(site: Site) -> Iterator[tuple[str, int, list[Picture]]]:
    """Split, patients, and pictures: the middle frame of its patients, evenly spaced."""
    used = [split for split in SPLITS if site.frames_of(split)]
    for split in used:
        own = site.frames_of(split)
        patients = site.patients(split)
        most = MOST_PICTURES // len(used)
        chosen = patients[:: -(-len(patients) // most)]
        middle = [
            frames[len(frames) // 2] for p in chosen if (frames := [frame for frame in own if frame.patient == p])
        ]
        yield split, len(patients), [_picture(frame, site) for frame in middle]


def _picture(frame: Frame, site: Site) -> Picture:
    grey = np.rint(read_image(frame) * 255).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, -1)
    # A target's masks are opened by nothing but the evaluation.
    if frame.mask is not None and site.config.role == "source":
        mask = read_mask(frame)
        width = max(1, max(mask.shape) // SIDE)  # seen after scaling down, too
        pixels[outline(mask, width)] = OUTLINE
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    field = f", {frame.spacing_mm * max(frame.height, frame.width):.0f} mm" if frame.spacing_mm else ""
    words = f"{frame.width} x {frame.height} px{field}"
    return Picture(base64.b64encode(buffer.getvalue()).decode(), frame.patient, words)
