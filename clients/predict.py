"""Segment images and cine loops with a run's released model: masks, confidence maps, overlays, a table."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from clients.data.findings import Finding, SiteFolderError, one_line
from clients.data.formats import format_of, open_recording
from clients.data.formats.recording import b_mode
from clients.data.frames import FIELD_MM
from clients.data.images import PictureError, check_depth
from clients.data.manifest import SPACING_MM
from clients.data.table import Line, read_table
from clients.released import Model
from clients.results import WRITERS, Writer
from clients.results.summary import Row, row_of, write_rows
from common.errors import CrossProbeError, RunError
from common.files import FolderInUseError, check_apart
from common.spreadsheet import decimal
from common.study import Study

#: One line an image, in the output's folder.
TABLE = "results.csv"
#: Overlay colour of the mask's outline: orange is told apart from grey by colour-blind readers too.
OUTLINE = (255, 149, 0)
#: What an earlier run leaves in the output's folder.
WRITTEN = (TABLE, "masks", "confidence", "overlays", "segmentations")
#: What lies in a folder of images and is none; every other file is segmented or named.
OTHER_FILES, OTHER_SUFFIXES = ("site.yaml", "thumbs.db", "desktop.ini"), (".csv", ".txt")


@dataclass(frozen=True)
class Input:
    """A file to segment, its name in the output, and what a table says of the side of its pixels."""

    file: Path
    name: str
    spacing_mm: float | None


@dataclass(frozen=True)
class Outcome:
    """What became of the files.

    Attributes:
        rows: one for each image that was written.
        done: names of the files that were segmented whole.
        skipped: names of what was not taken for an image: hidden files and those of a site's folder.
        problems: a line for each file that was not segmented, or not whole.
    """

    rows: tuple[Row, ...]
    done: tuple[str, ...]
    skipped: tuple[str, ...]
    problems: tuple[str, ...]


def find_inputs(images: Path) -> list[Input]:
    """Return the files to segment.

    Args:
        images: a file; a folder, all of it but hidden files; or a table (CSV) with a column `image`, paths from
            where it lies, and maybe `spacing_mm`. A folder with a manifest.csv stands for that table.

    Raises:
        RunError: if there is nothing.
        SiteFolderError: if the table cannot be used.
    """
    table = images / "manifest.csv" if (images / "manifest.csv").is_file() else images
    if table.suffix.lower() == ".csv":
        return _listed(table)
    if not images.exists():
        raise RunError(f"there is no {images}. Correct the path given with --images.")
    if images.is_file():
        return [Input(images, images.name, None)]
    found = [path for path in _files(images) if not _is_other(path.relative_to(images))]
    if not found:
        raise RunError(f"{images} holds no files. Give an image, a folder of images, or a table of them with --images.")
    return [Input(path, path.relative_to(images).as_posix(), None) for path in found]


def check_spacing(spacing_mm: float | None) -> None:
    """Raises RunError for what cannot be the side of a pixel in mm."""
    if spacing_mm is not None and not SPACING_MM[0] <= spacing_mm <= SPACING_MM[1]:
        raise RunError(
            f"expected millimetres per pixel from {SPACING_MM[0]} to {SPACING_MM[1]}, found {spacing_mm}. A usual "
            "image has 0.05 to 0.3."
        )


def predict(
    model: Model,
    images: Path,
    out: Path,
    *,
    spacing_mm: float | None = None,
    overwrite: bool = False,
    progress: Callable[[float, int], None] = lambda done, total: None,
) -> Outcome:
    """Segment `images`, see `find_inputs`.

    Writes, named after the images and in their sizes: `masks/` (0 and 255), `confidence/` (0: undecided, p = 0.5, to
    255: certain, p = 0 or 1) and `overlays/` (the mask's outline on the image), where frames of a loop are numbered;
    what `clients.results.WRITERS` adds for the file's format; and `results.csv`, see `clients.results.summary`.

    Args:
        spacing_mm: for images of which neither the table nor the file itself tells it.
        overwrite: remove what an earlier run left in `out`; else it is refused: two models' masks would lie together.
        progress: called after each image with how many files are done, parts of one included, and how many there are.

    Raises:
        RunError: if there is nothing to segment, no image at all could be, or `out` cannot be used.
        FolderInUseError: if `out` holds results, unless `overwrite`, or what only looks like them.
        SiteFolderError: if the table cannot be used.
    """
    check_spacing(spacing_mm)
    check_apart(images, out)
    inputs = find_inputs(images)
    _make_room(out, overwrite=overwrite)
    outcome = segment(model, inputs, out, spacing_mm=spacing_mm, progress=progress)
    return replace(outcome, skipped=_skipped(images))


def _make_room(out: Path, *, overwrite: bool) -> None:
    """Remove an earlier run's results. Raises FolderInUseError, see `predict`, and RunError."""
    there = [path for name in WRITTEN if (path := out / name).exists()]
    if not there:
        return
    if not (out / TABLE).is_file():
        raise FolderInUseError(f"{out} holds {there[0].name}/ and no {TABLE} of an earlier run. Give another --out.")
    if not overwrite:
        raise FolderInUseError(f"{out} holds the results of an earlier run. Give another --out, or --overwrite.")
    try:
        for path in there:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise RunError(f"cannot replace what lies in {out}: {error.strerror}. Give another --out.") from None


def segment(
    model: Model,
    inputs: Sequence[Input],
    out: Path,
    *,
    spacing_mm: float | None = None,
    progress: Callable[[float, int], None] = lambda done, total: None,
) -> Outcome:
    """Segment files that were found already, and skip none; else as `predict`. Ctrl-C leaves a table of what was done.

    Raises:
        RunError: if no image at all could be segmented, or `out` cannot be used.
    """
    rows: list[Row] = []
    done, problems = [], []
    taken: set[str] = set()
    for index, given in enumerate(inputs):
        try:
            for row, share in _segment(model, given, spacing_mm, out, taken):
                rows.append(row)
                progress(index + share, len(inputs))
            done.append(given.name)
        except PictureError as error:
            problems.append(f"{given.name}: {error.code}: {error.message}. {error.remedy}.")
        except OSError as error:
            raise RunError(f"cannot write to {out}: {error.strerror}. {len(rows)} images are done.") from None
        except KeyboardInterrupt:
            if rows:  # the pictures so far stand in the table too
                write_rows(out / TABLE, rows)
            raise
        progress(index + 1, len(inputs))
    if not rows:
        shown = "\n".join(map(one_line, problems[:3]))
        raise RunError(f"none of {len(inputs)} files could be segmented; nothing was written. The first:\n{shown}")
    write_rows(out / TABLE, rows)
    return Outcome(tuple(rows), tuple(done), (), tuple(problems))


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image [H, W] in [0, 1] with the outline of a bool mask, as uint8 [H, W, 3]."""
    inner = np.pad(mask, 1, mode="edge")
    inner = inner[:-2] & inner[1:-1] & inner[2:]
    inner = inner[:, :-2] & inner[:, 1:-1] & inner[:, 2:]
    picture = np.repeat(np.rint(image * 255).astype(np.uint8)[..., None], 3, axis=2)
    picture[mask & ~inner] = OUTLINE
    return picture


class Frames:
    """The frames of a file: name in the output and image [H, W] in [0, 1], one after the other.

    Attributes:
        spacing_mm: side of a pixel, from the table, else the file itself, else what is given for all.
        count: how many there are, as far as the header tells.

    Raises:
        PictureError: for what cannot be read, or is no B-mode of a scale that the study can use.
    """

    def __init__(self, study: Study, given: Input, spacing_mm: float | None) -> None:
        self.recording = open_recording(given.file)
        known = (given.spacing_mm, self.recording.spacing_mm, spacing_mm)
        self.spacing_mm = next((own for own in known if own is not None), None)
        self.count, self.name = self.recording.count, given.name
        if study.image.geometry == "spacing":
            _check_scale(self.spacing_mm, max(self.recording.height, self.recording.width))

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        stem = self.name.removesuffix(".png")
        for index, pixels in enumerate(self.recording.frames()):
            grey = check_depth(b_mode(pixels), "image")
            image = grey.astype(np.float32) / np.float32(np.iinfo(grey.dtype).max)
            yield f"{stem}.png" if self.count == 1 else f"{stem}-{index:04d}.png", image


def _segment(
    model: Model, given: Input, spacing_mm: float | None, out: Path, taken: set[str]
) -> Iterator[tuple[Row, float]]:
    """Segment and write a file; yield what is told of each frame, and the share of the file that is done.

    Args:
        taken: names of what was written before, to which its own come.
    """
    kind = WRITERS.get(format_of(given.file))
    writer = kind(given.file, out, given.name, model.study.name) if kind is not None else None
    if writer is not None:
        _take(writer.file.relative_to(out).as_posix(), taken)
    frames = Frames(model.study, given, spacing_mm)
    index, refused = 0, None
    try:
        for index, (name, image) in enumerate(frames, 1):
            maps = model.maps(image, frames.spacing_mm)
            p = maps[model.predictor]
            if not np.isfinite(p).all():
                raise PictureError("not-finite", "expected probabilities, the model gave none", "Report this image")
            _take(name, taken)
            _write(out, name, image, p)
            if writer is not None and refused is None:
                try:
                    with _result_file(writer):
                        writer.add(p > 0.5, overlay(image, p > 0.5))
                except PictureError as error:
                    refused = error  # told at the end: the frames' own pictures need no such file
            yield row_of(name, maps, p, frames.spacing_mm), min(1.0, index / frames.count)
        if not index:
            raise PictureError("no-frames", "expected an image or a loop, found no frame in it", "Export it again")
        if refused is not None:
            raise refused
        if writer is not None:
            with _result_file(writer):
                writer.close()
    except PictureError:
        if writer is not None:
            writer.file.unlink(missing_ok=True)  # half a video looks like a whole one, or does not open
        raise


def _take(name: str, taken: set[str]) -> None:
    """Take a name in the output. Raises PictureError if another file has it: `IM1` and `IM1.png` are two images."""
    if name in taken:
        raise PictureError(
            "same-name",
            f"expected files whose results differ in name, found another one that {name} was written for",
            "Rename one of the two and segment it again",
        )
    taken.add(name)


@contextmanager
def _result_file(writer: Writer) -> Iterator[None]:
    """Raise PictureError where no file can be made of the input, as by its header or size; OSError for a full disk."""
    try:
        yield
    except (OSError, PictureError):
        raise
    except Exception as error:  # of every kind, for whatever a header lacks or an encoder refuses
        found = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise PictureError(
            "no-result-file",
            f"expected an input that a {writer.file.suffixes[0]} file can be made for, found one that cannot ({found})",
            "Use the masks, which are written",
        ) from None


def _check_scale(spacing_mm: float | None, side_px: int) -> None:
    if spacing_mm is None:
        raise PictureError(
            "no-spacing",
            "expected the side of a pixel in mm, which this model needs, found none",
            "Give a table with `spacing_mm` as --images, or --spacing-mm for all",
        )
    low, high = FIELD_MM
    if not (SPACING_MM[0] <= spacing_mm <= SPACING_MM[1] and low <= spacing_mm * side_px <= high):
        raise PictureError(
            "implausible-size",
            f"expected an image that shows {low:g} to {high:g} mm, found {spacing_mm * side_px:.4g} mm ({side_px} px "
            f"of {spacing_mm:g} mm)",
            "Correct the spacing: millimetres a pixel, not cm or dots per inch",
        )


def _write(out: Path, name: str, image: np.ndarray, p: np.ndarray) -> None:
    mask = p > 0.5
    _save(out / "masks" / name, mask.astype(np.uint8) * 255)
    _save(out / "confidence" / name, np.rint(np.abs(2 * p - 1) * 255).astype(np.uint8))
    _save(out / "overlays" / name, overlay(image, mask))


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _files(images: Path) -> list[Path]:
    return sorted(path for path in images.rglob("*") if path.is_file()) if images.is_dir() else []


def _skipped(images: Path) -> tuple[str, ...]:
    """The names of a folder's files that are no images; where a table names the images, none is skipped."""
    if (images / "manifest.csv").is_file():
        return ()
    names = [path.relative_to(images) for path in _files(images)]
    return tuple(name.as_posix() for name in names if _is_other(name))


def _is_other(name: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return hidden or name.name.lower() in OTHER_FILES or name.suffix.lower() in OTHER_SUFFIXES


def _listed(table: Path) -> list[Input]:
    findings: list[Finding] = []
    lines = read_table(table, ("image", "spacing_mm"), ("image",), findings)
    found = [_row(table, line, findings) for line in lines]
    if findings:
        raise SiteFolderError(findings)
    return found


def _row(table: Path, line: Line, findings: list[Finding]) -> Input:
    name, text = line.cells["image"], line.cells["spacing_mm"]
    folder = table.parent.resolve()
    file = (folder / name).resolve()
    if name and file.is_relative_to(folder):
        name = file.relative_to(folder).as_posix()  # of an absolute path or one with `..`, what is written stays in OUT
    else:
        message = f"expected the path of an image from the table's own folder, found {name!r}"
        findings.append(Finding("path-outside-folder", f"{table.name} line {line.number}", message, "Correct the path"))
    spacing = None
    try:
        spacing = decimal(text) if text else None
        check_spacing(spacing)
    except (ValueError, CrossProbeError):
        message = f"expected millimetres per pixel from {SPACING_MM[0]} to {SPACING_MM[1]}, found {text!r}"
        findings.append(
            Finding("bad-spacing", f"{table.name} line {line.number}", message, "Correct it or leave it empty")
        )
    return Input(file, name, spacing)
