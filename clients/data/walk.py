"""All files below a folder, and what lies there that a program would pass by without a word."""

import os
from dataclasses import dataclass
from pathlib import Path

from clients.data.findings import Finding, remedy_of

#: Files that a system, a scanner or this software leaves in a folder.
OTHER_FILES = ("thumbs.db", "desktop.ini", "dicomdir")


@dataclass(frozen=True)
class Walk:
    """What a walk found, in the order of the names.

    Attributes:
        files: to be opened; a link to a file is one.
        passed_by: names of hidden files and folders and of `OTHER_FILES`, which nobody means.
        findings: what may hold images and was not walked into, or is no file.
    """

    files: tuple[Path, ...]
    passed_by: tuple[str, ...]
    findings: tuple[Finding, ...]


def walk(folder: Path) -> Walk:
    """Return what lies below a folder. A link to a folder is named and not followed: it may lead round in a circle."""
    files: list[Path] = []
    passed_by: list[str] = []
    findings: list[Finding] = []

    def named(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    def unreadable(error: OSError) -> None:
        message = f"expected a folder that may be read, found that it may not: {error.strerror}"
        findings.append(Finding("unreadable-folder", named(Path(error.filename)), message, remedy_of(error)))

    for place, folders, names in os.walk(folder, onerror=unreadable):
        here = Path(place)
        passed_by += [named(here / name) for name in folders if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (here / name).is_symlink():
                message = "expected a folder, found a link to one, which is not followed"
                remedy = "Copy its images here, or give the folder itself"
                findings.append(Finding("linked-folder", named(here / name), message, remedy))
        for name in sorted(names):
            path = here / name
            if name.startswith(".") or name.lower() in OTHER_FILES:
                passed_by.append(named(path))
            elif path.is_file():
                files.append(path)
            else:
                message = "expected a file, found a broken link or what is none"
                findings.append(Finding("no-file", named(path), message, "Copy the file itself here"))
    return Walk(tuple(sorted(files)), tuple(sorted(passed_by)), tuple(findings))
