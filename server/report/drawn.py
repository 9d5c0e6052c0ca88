"""What a report shows of the images, and how it is kept in the run's folder: a report that is made again has it too.

drawn.json   pictures (WebP in base64) and Dice by patient, written by who reads the sites' folders: a simulation
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import CrossProbeError, RunError
from common.files import write_atomically
from common.run_folder import RunFolder
from common.strict_text import parse_json

VERSION = 1


@dataclass(frozen=True)
class Example:
    """Pictures of one test image.

    Attributes:
        label: which image it is, without a patient's identifier or a file's name.
        dice: predictor -> Dice in [0, 1]; empty where the image has no truth.
        panels: (caption, WebP bytes) in the order to show.
    """

    site: str
    role: str
    label: str
    dice: dict[str, float]
    panels: list[tuple[str, bytes]]


@dataclass(frozen=True)
class PatientDice:
    """Dice of each labelled test patient of a site, in [0, 1], of predictor -> patients in one order without names.

    Numbers of single patients never leave a site: only who reads its folders has them.
    """

    site: str
    role: str
    dice: dict[str, list[float]]


@dataclass(frozen=True)
class Drawn:
    """What a report shows of the images."""

    pictures: Sequence[Example] = ()
    patients: Sequence[PatientDice] = ()


def keep(run: Path, drawn: Drawn) -> None:
    """Keep what was drawn of a run's images in its folder. Raises RunError."""
    content = {"version": VERSION, **asdict(drawn)}
    text = json.dumps(content, default=lambda picture: base64.b64encode(picture).decode())
    write_atomically(RunFolder(run).drawn, text.encode())


def kept(run: Path) -> Drawn:
    """Return what was kept, nothing for a run without images. Raises RunError if the file is damaged."""
    file = RunFolder(run).drawn
    try:
        content = parse_json(file.read_bytes(), origin=file.name)
        if content["version"] != VERSION:
            raise ValueError
        pictures = [
            Example(**(own | {"panels": [(words, base64.b64decode(picture)) for words, picture in own["panels"]]}))
            for own in content["pictures"]
        ]
        return Drawn(pictures, [PatientDice(**own) for own in content["patients"]])
    except FileNotFoundError:
        return Drawn()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CrossProbeError):
        raise RunError(f"{file} is damaged. Remove it; the report is then made without pictures.") from None
