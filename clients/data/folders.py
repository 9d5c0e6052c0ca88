"""Writing site folders in the format of `clients.data.site`, whole or not at all."""

import csv
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from clients.data.manifest import COLUMNS, Role
from common.errors import CrossProbeError


class FolderInUseError(CrossProbeError):
    """A folder to write holds something that must not be removed."""


@contextmanager
def whole_folder(folder: Path, names: Collection[str], *, overwrite: bool) -> Iterator[Path]:
    """A new folder to write `names` into, renamed to `folder` at the end of the block.

    If the block fails or is killed, `folder` stays as it was.

    Raises:
        FolderInUseError: before anything is written, if `folder` has content and `overwrite` is False, or content
            other than `names`, which is somebody else's and never removed.
        CrossProbeError: if it cannot be written; so does any OSError within the block.
    """
    work = None
    try:
        found = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if found and not overwrite:
            raise FolderInUseError(
                f"expected {folder} to be empty or not to exist, found content; give another folder, or replace what "
                "this command wrote there with --overwrite"
            )
        only(names, folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, for a rename is atomic only within one file system.
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        new, old = work / "new", work / "old"
        new.mkdir()
        yield new
        if not found:
            os.replace(new, folder)
            return
        # A folder with content cannot be renamed over, so the old one steps aside first.
        os.replace(folder, old)
        try:
            os.replace(new, folder)
        except BaseException:  # Ctrl-C too: what is left in `work` goes
            os.replace(old, folder)
            raise
    except OSError as error:
        raise CrossProbeError(
            f"cannot write {folder}: {error.strerror or error}. It is as it was before. Make room, or give another "
            "folder, then try again."
        ) from None
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def only(names: Collection[str], folder: Path) -> None:
    """Check that a folder, if it exists, holds nothing but `names`. Raises FolderInUseError."""
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if strange := sorted(found.difference(names)):
        raise FolderInUseError(
            f"expected nothing but {', '.join(names)} in {folder}, found {', '.join(strange)}; "
            "give another folder or move these away"
        )


def write_site_files(folder: Path, *, name: str, role: Role, rows: Iterable[Mapping[str, object]]) -> None:
    """site.yaml with the defaults, and manifest.csv; a row may leave out its empty cells."""
    content = yaml.safe_dump({"name": name, "role": role}, sort_keys=False)
    (folder / "site.yaml").write_text(content, encoding="utf-8")
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
