"""What lies in a folder off a scanner: its files, and whose they are."""

import os
import re
import unicodedata
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from clients.data.findings import Finding, SiteFolderError
from clients.data.intake.masks import Outlines, coco, outlines_of
from clients.data.manifest import COLUMNS, SPLITS
from clients.data.table import Line, read_table
from clients.data.walk import walk
from common.components import Split
from common.errors import CrossProbeError
from common.spreadsheet import decimal


@dataclass(frozen=True)
class Source:
    """A file, its path within the folder, and what is known of it before it is opened; empty where nothing is."""

    file: Path
    name: str
    patient: str = ""
    device: str = ""
    spacing_mm: float | None = None
    split: Split | None = None
    mask: Outlines | None = None


@dataclass(frozen=True)
class Found:
    """What there is to take in.

    Attributes:
        sources: in the order of their names.
        findings: what may hold images and cannot be looked at, see `clients.data.walk`.
        unused_masks: of the masks' folder or file, those that belong to no image here.
    """

    sources: tuple[Source, ...]
    findings: tuple[Finding, ...]
    unused_masks: tuple[str, ...]


def find_sources(
    folder: Path, *, table: Path | None = None, pattern: str | None = None, masks: Path | None = None
) -> Found:
    """Find all files of a folder but hidden ones, or those that a table lists.

    Args:
        table: CSV with the columns of a manifest.csv, of which `image` alone is needed; paths from `folder`. A mask
            that it names goes before one of `masks`.
        pattern: regular expression with one group, the patient, looked for in each file's path within the folder.
        masks: folder with a file of the same path, whatever its suffix, for each image that has a mask; or a COCO
            file that names the images.

    Raises:
        SiteFolderError: if the table cannot be used.
        CrossProbeError: if the folder holds nothing, or the pattern is none.
    """
    if not folder.is_dir():
        raise CrossProbeError(f"expected a folder of images, found none at {folder}. Correct the path.")
    rows = _rows(folder, table) if table else {}
    finder = _compiled(pattern) if pattern else None
    known = _Masks(masks) if masks else None
    findings: tuple[Finding, ...] = ()
    if table:
        listed = [rows[name] for name in sorted(rows)]
    else:
        there = walk(folder)
        findings = there.findings
        apart = masks.resolve() if masks else None  # the masks may lie within the images' folder
        listed = [
            Source(path, path.relative_to(folder).as_posix())
            for path in there.files
            if apart is None or not path.resolve().is_relative_to(apart)
        ]
    if not listed:
        raise CrossProbeError(
            f"{folder} holds no files to take in{' besides the masks' if masks else ''}. Give the folder that holds "
            "the images."
        )
    sources = []
    for source in listed:
        named = finder.search(source.name) if finder else None
        patient = source.patient or (named[1] if named else "")
        mask = source.mask or (known.of(source.name) if known else None)
        sources.append(replace(source, patient=patient, mask=mask))
    return Found(tuple(sources), findings, known.unused() if known else ())


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        finder = re.compile(pattern)
    except re.error as error:
        raise CrossProbeError(f"the pattern {pattern!r} is no regular expression: {error}.") from None
    if finder.groups != 1:
        raise CrossProbeError(
            f"expected a pattern with one group, the patient, found {finder.groups} in {pattern!r}. For names such as "
            r"case12_left.png it is: '(case\d+)_'"
        )
    return finder


class _Masks:
    """The masks of a folder or of a COCO file, by the path of their image. Raises CrossProbeError."""

    def __init__(self, place: Path) -> None:
        self._place, self._listed = place, place.is_file()
        self._taken: dict[str, str] = {}
        self._known: dict[str, Outlines] = {}
        self._by_stem: dict[str, list[str]] = {}
        if self._listed:
            self._known = dict(coco.read(place))
        elif place.is_dir():
            there = walk(place)
            if there.findings:
                raise SiteFolderError(there.findings)
            for path in there.files:
                name = path.relative_to(place).as_posix()
                self._known[name] = outlines_of(path)
                self._by_stem.setdefault(_stem(name), []).append(name)
        else:
            raise CrossProbeError(
                f"expected a folder of masks or a COCO file, found none at {place}. Correct the path."
            )

    def of(self, name: str) -> Outlines | None:
        """The mask of an image, or None. A COCO file often names images without the folders that they lie in."""
        if not self._listed:
            return self._of_path(name)
        parts = name.split("/")
        found = next((own for n in range(len(parts)) if (own := "/".join(parts[n:])) in self._known), None)
        if found is None:
            return None
        if self._taken.setdefault(found, name) != name:
            raise CrossProbeError(
                f"{self._place} names {found}, and two images have this name: {self._taken[found]} and {name}. Name it "
                "with its folder there."
            )
        return self._known[found]

    def _of_path(self, name: str) -> Outlines | None:
        """The mask of the same path, or of the image's whole name with a suffix, or of its name with another one."""
        found = [name] if name in self._known else self._by_stem.get(name) or self._by_stem.get(_stem(name), [])
        if len(found) > 1:
            raise CrossProbeError(
                f"expected one mask in {self._place} for {name}, found {', '.join(found)}. Take the others away."
            )
        if not found:
            return None
        other = self._taken.setdefault(found[0], name)
        if other != name:
            raise CrossProbeError(
                f"{self._place} has one mask, {found[0]}, for two images, {other} and {name}. Name it "
                "as the image that it was drawn on, suffix included, with a suffix of its own."
            )
        return self._known[found[0]]

    def unused(self) -> tuple[str, ...]:
        """The names of those that no image was asked for."""
        return tuple(own for own in self._known if own not in self._taken)


def _stem(name: str) -> str:
    """A path without its suffix, nor the two of `.nii.gz` and `.seg.nrrd`; a DICOM file's number is none."""
    return re.sub(r"(\.nii\.gz|\.seg\.nrrd|\.[A-Za-z][A-Za-z0-9]{0,4})$", "", name)


def _rows(folder: Path, table: Path) -> dict[str, Source]:
    findings: list[Finding] = []
    lines = read_table(table, COLUMNS, ("image",), findings, code="table")
    root = folder.resolve()
    spelling = _Spelling(root)
    found: dict[str, Source] = {}
    line_of: dict[str, int] = {}
    for line in lines:
        source = _source(root, table, line, spelling, findings)
        found[source.name] = source
        if (first := line_of.setdefault(source.name, line.number)) != line.number:
            message = f"expected each image once, found it in line {first} too"
            findings.append(
                Finding("duplicate-row", f"{table.name} line {line.number}", message, "Remove one of the rows")
            )
    if findings:
        raise SiteFolderError(findings)
    return found


def _lies_in(root: Path, name: str) -> bool:
    try:
        path = os.path.realpath(root / name)
        return path.startswith(f"{root}{os.sep}") and os.path.isfile(path)
    except ValueError:  # a NUL
        return False


class _Spelling:
    """How the disk spells a path: a Mac writes an umlaut as two letters, a spreadsheet as one."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, name: str) -> str:
        """A path as it is on the disk; one that is not there as it was given."""
        if not name or _lies_in(self._root, name):
            return name
        return self._by_plain.get(unicodedata.normalize("NFC", name), name)

    @cached_property
    def _by_plain(self) -> dict[str, str]:  # for the first path that is not there: looking takes a walk
        names = (path.relative_to(self._root).as_posix() for path in walk(self._root).files)
        return {unicodedata.normalize("NFC", name): name for name in names}


def _source(folder: Path, table: Path, line: Line, spelling: _Spelling, findings: list[Finding]) -> Source:
    cells, where = line.cells, f"{table.name} line {line.number}"
    image, mask = (spelling.of(cells[name].replace("\\", "/")) for name in ("image", "mask"))
    if not image:
        findings.append(
            Finding("missing-image", where, "expected the path of an image, found an empty cell", "Fill it in")
        )
    for kind, name in (("image", image), ("mask", mask)):
        if name and not _lies_in(folder, name):
            message = f"expected in column `{kind}` a path from {folder.name}/ to a file within it, found {name!r}"
            findings.append(Finding(f"missing-{kind}", where, message, "Correct the path; A is not a"))
    if mask and mask == image:
        message = "expected a mask of its own in column `mask`, found the image itself"
        findings.append(Finding("mask-is-image", where, message, f"Give the mask's path from {folder.name}/"))
    spacing = None
    try:
        spacing = decimal(cells["spacing_mm"]) if cells["spacing_mm"] else None
    except ValueError:
        message = f"expected millimetres per pixel, found {cells['spacing_mm']!r}"
        findings.append(Finding("bad-spacing", where, message, "Correct it, or leave it empty"))
    split = next((known for known in SPLITS if known == cells["split"].lower()), None)
    if cells["split"] and split is None:
        message = f"expected one of {', '.join(SPLITS)} or an empty cell, found {cells['split']!r}"
        findings.append(Finding("bad-split", where, message, "Correct it, or leave it empty"))
    outlines = outlines_of(folder / mask) if mask else None
    name = Path(os.path.relpath(folder / image, folder)).as_posix()  # however the row writes it
    return Source(folder / image, name, cells["patient"], cells["device"], spacing, split, outlines)
