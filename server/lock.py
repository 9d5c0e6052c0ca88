"""One ServerApp a run folder: the old one may still be ending when a resumed run starts."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import RunError

LOCK = "lock"
#: How long the ServerApp of a stopped run is waited for, in seconds.
WAIT_S = 90.0


@contextmanager
def run_folder(run: Path, *, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold a run's folder for as long as the block runs; the kernel lets go when the process ends, however it ends.

    Raises:
        RunError: if another process still holds it after `wait_s`, or nothing can be written there.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = open(run / LOCK, "ab")  # noqa: SIM115 - closed below, when the block ends
    except OSError as error:
        raise RunError(f"cannot write to {run}: {error.strerror}. Choose another --out folder.") from None
    with file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise RunError(
                        f"another run still writes to {run}. End it with: crossprobe study stop {run}"
                    ) from None
                time.sleep(0.5)
        yield
