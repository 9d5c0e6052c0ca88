"""Processes of one machine that a simulation starts, and ends with all that they started."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
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


def end_those_with(entry: str, patience_s: float = 10.0) -> None:
    """Wait for every process of an environment with an entry, such as `HOME=/x`, to end by itself, then kill it.

    For what left the group of the process that started it, as what Flower starts does.
    """
    deadline = time.monotonic() + patience_s
    while (left := those_with(entry)) and time.monotonic() < deadline + patience_s:
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def those_with(entry: str) -> set[int]:
    """Return the ids of the processes whose environment has an entry."""
    found = set()
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it ended while we looked, or is another user's
            if process.name.isdigit() and entry.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.add(int(process.name))
    return found


def _alive(leader: subprocess.Popen[Any]) -> bool:
    leader.poll()  # collects the leader, so that the group can become empty
    try:
        os.killpg(leader.pid, 0)
    except ProcessLookupError:
        return False
    return True
