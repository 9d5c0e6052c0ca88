"""Disks that are small, full or read-only, for tests that may mount one."""

import contextlib
import errno
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: Whether a file system can be mounted here.
MOUNTS = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True).returncode == 0
)


def fill_up(filler: Path) -> None:
    """Write a file until no byte is left."""
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """Put a small file system of its own in a folder's place, with what the folder holds; only root may mount one."""
    with tempfile.TemporaryDirectory() as kept:
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tiny", folder], check=True)
        shutil.copytree(kept, folder, dirs_exist_ok=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nothing be written to a file system while the block runs."""
    remount(folder, "ro")
    try:
        yield
    finally:
        remount(folder, "rw")


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Leave no byte free on a file system while the block runs."""
    filler = folder / "filler"
    fill_up(filler)
    try:
        yield
    finally:
        filler.unlink()
