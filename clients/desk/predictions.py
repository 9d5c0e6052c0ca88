"""Released models on the hospital's own pictures, at the desk. What they draw stays in one folder of the site.

    KEPT/                      for its owner alone, like all in it
      lock                     held by the desk that uses it
      20261126T101502123456Z/        one prediction: all that `clients.predict` writes, and
        prediction.json        what was asked for and what became of it, written last

What a page asks for is looked up among what lies there; no path ever comes from a browser.
"""

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from clients.data.site import Site
from clients.inputs import Input, find_inputs
from clients.predict import segment
from clients.released import Model
from clients.results.summary import Row
from common.errors import CrossProbeError, RunError
from common.files import exclusive, private_folder, write_atomically
from common.release import RELEASE, SUMS
from common.strict_text import parse_json

RECORD = "prediction.json"
VERSION = 1
#: Sides of a picture in the list and of one that is looked at, in pixels; the folder has them in their own size.
SMALL, LARGE = 240, 1200
_BEGUN = ".begun-"


@dataclass(frozen=True)
class Places:
    """Where a desk finds models and pictures, and where it keeps what becomes of them.

    Attributes:
        models: a release, a finished run that holds one, or a folder of them.
        kept: a folder of the desk's own.
        images: a folder of further pictures, beside those of the site; None: there is none.
    """

    models: Path
    kept: Path
    images: Path | None = None


@dataclass(frozen=True)
class Prediction:
    """What became of one choice of pictures.

    Attributes:
        id: name of its folder.
        when: UTC, ISO 8601.
        model, images: in the words of the page that they were chosen on.
        problems: a line for each file that was not segmented, or not whole.
    """

    id: str
    when: str
    model: str
    images: str
    rows: tuple[Row, ...]
    problems: tuple[str, ...]

    @property
    def again(self) -> int:
        """How many a person should look at again."""
        return sum(bool(row.look_again) for row in self.rows)


@contextmanager
def only_desk(places: Places) -> Iterator[None]:
    """Make the folder for predictions and hold it for as long as the block runs; begun ones are taken away first.

    Raises:
        RunError: if it cannot be written, or another desk uses it.
    """
    try:
        private_folder(places.kept)
    except OSError as error:
        raise RunError(f"cannot write to {places.kept}: {error.strerror}. Choose another --predictions.") from None
    with exclusive(places.kept / "lock", f"another desk keeps its predictions in {places.kept}. Choose another."):
        for folder in places.kept.glob(f"{_BEGUN}*"):
            shutil.rmtree(folder, ignore_errors=True)
        yield


def releases(models: Path) -> dict[str, Path]:
    """Return what may hold a released model, by name; whether it is whole is found out when it is read."""
    try:
        found = [models] if _is_release(models) else sorted(filter(_is_release, models.iterdir()))
    except OSError:
        return {}
    return {folder.name: folder for folder in found}


def choices(site: Site | None, images: Path | None) -> dict[str, str]:
    """Return the pictures that can be chosen: a key, and its words for the page."""
    found = {}
    if site is not None:
        found["site"] = f"all {len(site.frames)} images of {site.config.name}"
        for split in dict.fromkeys(frame.split for frame in site.frames):
            found[f"site/{split}"] = f"the {len(site.frames_of(split))} {split} images of {site.config.name}"
    if images is not None:
        found["images"] = f"all of the folder {images.name}"
        found |= {f"images/{name}": f"the folder {images.name}/{name}" for name in _folders(images)}
    return found


def inputs_of(choice: str, site: Site | None, images: Path | None) -> list[Input]:
    """Return the files behind a key of `choices`.

    Raises:
        RunError: if a folder has none.
        SiteFolderError: if a folder's table cannot be used.
    """
    origin, _, part = choice.partition("/")
    if origin == "images":
        assert images is not None
        return find_inputs(images / part)
    assert site is not None
    return [
        Input(frame.image, frame.image.relative_to(site.folder).as_posix(), frame.spacing_mm)
        for frame in site.frames
        if part in ("", frame.split)
    ]


def make(
    model: Model,
    inputs: Sequence[Input],
    kept: Path,
    *,
    words: tuple[str, str],
    spacing_mm: float | None,
    progress: Callable[[float, int], None],
) -> Prediction:
    """Segment, and keep the prediction whole or not at all.

    Args:
        words: for the model and for the images.

    Raises:
        RunError: if no image could be segmented, or nothing can be written.
    """
    now = datetime.now(UTC)
    name = f"{now:%Y%m%dT%H%M%S%f}Z"
    begun = kept / f"{_BEGUN}{name}"
    try:
        begun.mkdir(mode=0o700)
        outcome = segment(model, inputs, begun, spacing_mm=spacing_mm, progress=progress)
        made = Prediction(name, now.isoformat(timespec="seconds"), *words, outcome.rows, outcome.problems)
        content = {"version": VERSION, **asdict(made)}
        write_atomically(begun / RECORD, json.dumps(content, indent=1).encode(), then="try again")
        begun.rename(kept / name)
    except OSError as error:
        raise RunError(f"cannot write to {kept}: {error.strerror}. Make room, then try again.") from None
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    return made


def read(kept: Path) -> tuple[list[Prediction], list[str]]:
    """Return the predictions, the latest first, and the names of folders that cannot be read."""
    folders = [file.parent.name for file in sorted(kept.glob(f"[0-9]*/{RECORD}"), reverse=True)]
    found = {name: find(kept, name) for name in folders}
    return [one for one in found.values() if one], [name for name, one in found.items() if one is None]


def find(kept: Path, name: str) -> Prediction | None:
    """Return the prediction in a folder of `kept`, or None if there is none that can be read."""
    try:
        content = parse_json((kept / name / RECORD).read_bytes(), origin=RECORD)
        if content.pop("version") != VERSION or content["id"] != name:
            return None
        rows = tuple(Row(**row) for row in content.pop("rows"))
        return Prediction(rows=rows, problems=tuple(content.pop("problems")), **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CrossProbeError):
        return None


def picture(file: Path, side: int) -> str:
    """Return a picture as a `data:` address of PNG, its longer side at most `side` px; empty if it is gone."""
    try:
        with Image.open(file) as whole:
            whole.thumbnail((side, side))
            buffer = io.BytesIO()
            whole.save(buffer, "PNG")
    except (OSError, ValueError):
        return ""
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def pictures(kept: Path, prediction: Prediction, row: Row, side: int) -> Mapping[str, str]:
    """Return overlay and confidence of a row as `data:` addresses."""
    folder = (kept / prediction.id).resolve()
    files = {kind: (folder / kind / row.image).resolve() for kind in ("overlays", "confidence")}
    return {kind: picture(file, side) if file.is_relative_to(folder) else "" for kind, file in files.items()}


def _is_release(folder: Path) -> bool:
    return (folder / SUMS).is_file() or (folder / RELEASE / SUMS).is_file()


def _folders(images: Path) -> list[str]:
    try:
        return sorted(path.name for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []
