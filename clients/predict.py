"""Segment images and cine loops with a run's released model: masks, confidence maps, overlays, a table."""

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from clients.data.formats import format_of, open_recording
from clients.data.formats.recording import b_mode
from clients.data.frames import FIELD_MM
from clients.data.images import PictureError, check_depth, outline
from clients.data.manifest import SPACING_MM
from clients.inputs import Input, check_spacing, find_inputs, skipped
from clients.released import Model
from clients.results import WRITERS, Writer
from clients.results.summary import Row, row_of, write_rows
from common.errors import RunError
from common.files import FolderInUseError, check_apart, private_folder
from common.plain_words import one_line
from common.study import Study

#: One line an image, in the output's folder.
TABLE = "results.csv"
#: One line a file that was not segmented, or not whole; missing where there is none.
PROBLEMS = "not-segmented.txt"
#: What a file's name can be to blame for: too long, or that of a folder.
OF_A_NAME = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
#: Overlay colour of the mask's outline: orange is told apart from grey by colour-blind readers too.
OUTLINE = (255, 149, 0)
#: What an earlier run leaves in the output's folder.
WRITTEN = (TABLE, PROBLEMS, "masks", "confidence", "overlays", "segmentations")


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
    what `clients.results.WRITERS` adds for the file's format; `results.csv`, see `clients.results.summary`; and
    `not-segmented.txt` where a file failed.

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
    with _earlier_aside(out, overwrite=overwrite):
        outcome = segment(model, inputs, out, spacing_mm=spacing_mm, progress=progress)
    return replace(outcome, skipped=skipped(images))


@contextmanager
def _earlier_aside(out: Path, *, overwrite: bool) -> Iterator[None]:
    """Put an earlier run's results aside, and back if nothing new was written. Raises as `predict` does."""
    there = [path for name in WRITTEN if (path := out / name).exists()]
    if not there:
        yield
        return
    if not (out / TABLE).is_file():
        raise FolderInUseError(f"{out} holds {there[0].name}/ and no {TABLE} of an earlier run. Give another --out.")
    if not overwrite:
        raise FolderInUseError(f"{out} holds the results of an earlier run. Give another --out, or --overwrite.")
    try:
        aside = Path(tempfile.mkdtemp(prefix=".earlier.", dir=out))
        for path in there:
            path.rename(aside / path.name)
    except OSError as error:
        raise RunError(f"cannot replace what lies in {out}: {error.strerror}. Give another --out.") from None
    try:
        yield
    except BaseException:
        if not any((out / name).exists() for name in WRITTEN if name != TABLE):
            (out / TABLE).unlink(missing_ok=True)  # of no image yet
            for path in aside.iterdir():
                path.rename(out / path.name)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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
    try:
        private_folder(out)  # what was burned into an image stands in its overlay too
        write_rows(out / TABLE, rows)  # so that a full disk leaves what another run may replace
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror}. Give another --out.") from None
    for index, given in enumerate(inputs):
        try:
            for row, share in _segment(model, given, spacing_mm, out, taken):
                rows.append(row)
                progress(index + share, len(inputs))
            done.append(given.name)
        except PictureError as error:
            problems.append(f"{given.name}: {error.code}: {error.message}. {error.remedy}.")
        except (OSError, KeyboardInterrupt) as stopped:
            if isinstance(stopped, OSError) and stopped.errno in OF_A_NAME:
                problems.append(f"{given.name}: bad-name: cannot be written: {stopped.strerror}. Rename it.")
                continue
            with suppress(OSError):  # the pictures so far stand in the table too, if it can be written
                write_rows(out / TABLE, rows)
            if isinstance(stopped, KeyboardInterrupt):
                raise
            raise RunError(f"cannot write to {out}: {stopped.strerror}. {len(rows)} images are done.") from None
        progress(index + 1, len(inputs))
    if not rows:
        (out / TABLE).unlink()
        with suppress(OSError):  # a folder that was there may hold other things
            out.rmdir()
        shown = "\n".join(map(one_line, problems[:3]))
        raise RunError(f"none of {len(inputs)} files could be segmented; nothing was written. The first:\n{shown}")
    write_rows(out / TABLE, rows)
    if problems:
        (out / PROBLEMS).write_text("\n".join(map(one_line, problems)) + "\n", encoding="utf-8")
    return Outcome(tuple(rows), tuple(done), (), tuple(problems))


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image [H, W] in [0, 1] with the outline of a bool mask, as uint8 [H, W, 3]."""
    picture = np.repeat(np.rint(image * 255).astype(np.uint8)[..., None], 3, axis=2)
    picture[outline(mask)] = OUTLINE
    return picture


class Frames:
    """The frames of a file: name in the output and image [H, W] in [0, 1], one after the other.

    Attributes:
        spacing_mm: side of a pixel, from the table, else the file itself, else what is given for all.
        count: how many there are, as far as the header tells; 0: it does not.

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
            share = min(1.0, index / frames.count) if frames.count else 0.0
            yield row_of(name, maps, p, frames.spacing_mm), share
        if not index:
            raise PictureError("no-frames", "expected an image or a loop, found no frame in it", "Export it again")
        if refused is not None:
            raise refused
        if writer is not None:
            with _result_file(writer):
                writer.close()
    except BaseException:  # Ctrl-C and a full disk too
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
