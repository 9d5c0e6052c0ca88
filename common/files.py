"""Writing a file or a folder whole or not at all, and holding a file; the same at server, site and desk."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from filelock import lock_descriptor

from common.errors import CrossProbeError, RunError

#: Modes of a file: for the writing user alone, or for all to read, such as a certificate and what is published.
PRIVATE, PUBLIC = 0o600, 0o644


class FolderInUseError(CrossProbeError):
    """A folder to write holds something that must not be removed."""


def write_atomically(
    path: Path, content: bytes, *, then: str = "try again", mode: int = PRIVATE, new: bool = False
) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new.

    Args:
        then: what the reader of the error should do once there is space again.
        mode: of the file, whatever the umask, set before the first byte is written.
        new: refuse to replace a file, also one that somebody else makes meanwhile.

    Raises:
        RunError: if the disk is full or not writable, or with `new` the file exists; the old file is intact.
    """
    temporary: Path | None = None
    try:
        # A name of its own, which nobody can guess: two may write one file, and a link laid there would be followed.
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if new:
            os.link(temporary, path)  # unlike a rename, fails if the file exists
        else:
            os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}. What was saved before is intact; free some space or fix the "
            f"permissions, then {then}."
        ) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # a read-only disk refuses this too
                temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk: a file that was written, but not its name, is gone after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_to(file: Path) -> int:
    """Open a file for more at its end, made private where it is missing, and no link; a descriptor. Raises OSError."""
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, PRIVATE)


@contextlib.contextmanager
def whole_folder(folder: Path, names: Collection[str], *, overwrite: bool) -> Iterator[Path]:
    """A new folder to write `names` into, renamed to `folder` at the end of the block.

    If the block fails or is killed, `folder` stays as it was. Killed in the moment in which two whole folders change
    places, it is in the hidden one beside it, `.NAME.*.part/old`.

    Raises:
        FolderInUseError: before anything is written, if `folder` has content and `overwrite` is False, or content
            other than `names`, which is somebody else's and never removed.
        CrossProbeError: if it cannot be written; so does any OSError within the block.
    """
    work = None
    try:
        found = _content(folder)
        if found and not overwrite:
            raise FolderInUseError(
                f"expected {folder} to be empty or not to exist, found content; give another folder, or replace what "
                "this command wrote there with --overwrite"
            )
        _refuse_others(found, names, folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, for a rename is atomic only within one file system.
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        new, old = work / "new", work / "old"
        new.mkdir()
        yield new
        if not found:
            os.replace(new, folder)
            sync_folder(folder.parent)
            return
        # A folder with content cannot be renamed over, so the old one steps aside first.
        os.replace(folder, old)
        try:
            os.replace(new, folder)
        except BaseException:  # Ctrl-C too: what is left in `work` goes
            os.replace(old, folder)
            raise
        sync_folder(folder.parent)
    except OSError as error:
        raise CrossProbeError(
            f"cannot write {folder}: {error.strerror or error}. It is as it was before. Make room, or give another "
            "folder, then try again."
        ) from None
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def refuse_other_content(names: Collection[str], folder: Path) -> None:
    """Check that a folder, if it exists, holds nothing but `names`. Raises FolderInUseError."""
    _refuse_others(_content(folder), names, folder)


def _content(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def _refuse_others(found: set[str], names: Collection[str], folder: Path) -> None:
    if strange := sorted(found.difference(names)):
        raise FolderInUseError(
            f"expected nothing but {', '.join(names)} in {folder}, found {', '.join(strange)}; "
            "give another folder or move these away"
        )


def check_apart(images: Path, out: Path) -> None:
    """Raises RunError if the output would be read as input the next time, or could overwrite what lies beside it.

    Args:
        images: a folder; or a file, such as a table, in whose folder another one may be the output.
    """
    target = out.resolve()
    folder = images.resolve() if images.is_dir() else images.resolve().parent
    if folder.is_relative_to(target) or (images.is_dir() and target.is_relative_to(folder)):
        raise RunError(
            f"expected the output apart from the images, found {out} within {images} or around it. Give another."
        )


def check_outside(file: Path, *folders: Path) -> None:
    """Raises RunError if a file to write lies within a folder that holds what it could overwrite."""
    for folder in folders:
        if file.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"expected a place outside of {folder} to write to, found {file}. Give another.")


def private_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in where they are missing, that others may not enter.

    One that is there keeps its mode: the files in it are private by themselves. Raises OSError.
    """
    for each in (*reversed(folder.parents), folder):  # `parents=True` would make those with another mode
        each.mkdir(exist_ok=True, mode=0o700)


@contextlib.contextmanager
def exclusive(lock: Path, taken: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it when the process ends, however it ends. A link is not followed.

    Args:
        taken: what to say where another process holds it for longer than `wait_s` seconds.

    Raises:
        RunError: with the text `taken`, or if the lock cannot be made.
    """
    flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW  # not for writing: a disk can still be made read-only
    try:
        descriptor = os.open(lock, flags, PRIVATE)
    except OSError as error:
        raise RunError(f"cannot make the lock file {lock}: {error.strerror}.") from None
    try:
        deadline = time.monotonic() + wait_s
        while not lock_descriptor(descriptor, blocking=False):
            if time.monotonic() >= deadline:
                raise RunError(taken)
            time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)
