"""Writing a file whole or not at all; the same for the server's checkpoints and a site's state."""

import contextlib
import os
from pathlib import Path

from common.errors import RunError


def write_atomically(
    path: Path, content: bytes, *, then: str = "start again with --resume", private: bool = False
) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new.

    Args:
        then: what the reader of the error should do once there is space again.
        private: for the writing user alone, mode 0600.

    Raises:
        RunError: if the disk is full or not writable; the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        mode = 0o600 if private else 0o666
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            if private:
                os.fchmod(file.fileno(), mode)  # what a crash left behind keeps its own
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # a read-only disk refuses this too
            temporary.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {path}: {error.strerror}. What was saved before is intact; free some space or fix the "
            f"permissions, then {then}."
        ) from None
