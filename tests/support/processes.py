"""Which processes a test left behind, and waiting for those that go on."""

import time
from collections.abc import Callable
from pathlib import Path


def processes_of(marker: str) -> set[int]:
    """The processes whose environment holds a marker, also those that left their session."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker.encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
        except OSError:  # it ended while we looked, or is another user's
            continue
    return found


def wait_until(true: Callable[[], object], what: str, patience_s: float = 60.0) -> None:
    """Wait until something is true; where it does not come true, the test fails with `what` was waited for."""
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, f"not within {patience_s:.0f} s: {what}"
        time.sleep(0.2)
