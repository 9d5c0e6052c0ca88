"""Processes of one machine that a simulation starts, and ends with all that they started."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Any

#: Signals for a group of processes, and how many seconds it has to end after each: asked first, then killed.
ASKED_FIRST = ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))


def free_port() -> int:
    """Return a port of loopback that nobody listens at."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody listens at a port of loopback."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def end_group(leader: subprocess.Popen[Any], signals: Sequence[tuple[int, float]] = ASKED_FIRST) -> None:
    """End a process that leads a group of its own, and every process in it, with one signal after the other.

    Args:
        signals: each with how many seconds it has.
    """
    for sig, patience_s in signals:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, sig)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and _alive(leader):
            time.sleep(0.1)
        if not _alive(leader):
            return


def _alive(leader: subprocess.Popen[Any]) -> bool:
    leader.poll()  # collects the leader, so that the group can become empty
    try:
        os.killpg(leader.pid, 0)
    except ProcessLookupError:
        return False
    return True
