"""What is to be segmented: a file, a folder, or the images that a table lists."""

from dataclasses import dataclass
from pathlib import Path

from clients.data.findings import Finding, SiteFolderError
from clients.data.manifest import SPACING_MM
from clients.data.table import Line, read_table
from clients.data.walk import walk
from common.errors import CrossProbeError, RunError
from common.spreadsheet import decimal

#: What lies in a folder of images and is none, besides what `clients.data.walk` passes by.
OTHER_NAMES, OTHER_SUFFIXES = ("site.yaml",), (".csv", ".txt")


@dataclass(frozen=True)
class Input:
    """A file to segment, its name in the output, and what a table says of the side of its pixels."""

    file: Path
    name: str
    spacing_mm: float | None


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
    found = [path for path in walk(images).files if not _is_other(path)]
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


def skipped(images: Path) -> tuple[str, ...]:
    """Return the names of what is no image in a folder, or was not walked into; of a table's none."""
    if (images / "manifest.csv").is_file() or not images.is_dir():
        return ()
    there = walk(images)
    others = [path.relative_to(images).as_posix() for path in there.files if _is_other(path)]
    return tuple(sorted((*others, *there.passed_by, *(finding.where for finding in there.findings))))


def _is_other(path: Path) -> bool:
    return path.name.lower() in OTHER_NAMES or path.suffix.lower() in OTHER_SUFFIXES


def _listed(table: Path) -> list[Input]:
    findings: list[Finding] = []
    lines = read_table(table, ("image", "spacing_mm"), ("image",), findings)
    found = [_row(table, line, findings) for line in lines]
    if findings:
        raise SiteFolderError(findings)
    return found


def _row(table: Path, line: Line, findings: list[Finding]) -> Input:
    name, text = line.cells["image"].replace("\\", "/"), line.cells["spacing_mm"]
    folder = table.parent.resolve()
    try:
        file = (folder / name).resolve()
    except (OSError, ValueError):  # no path at all, or one that leads round in a circle
        file = Path()
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
