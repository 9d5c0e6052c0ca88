"""The memory of process trees while they work, by what their processes do."""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

EVERY_S = 0.3


def resident_mb(session: int, words: Mapping[str, str]) -> dict[str, list[float]]:
    """Return the resident memory, MB (10^6 bytes), of the processes of a session.

    Args:
        session: id of the process that leads it.
        words: what a process's command holds -> what it is called; the first that fits counts, others are `other`.
    """
    found: dict[str, list[float]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):  # it ended
            if os.getsid(int(entry.name)) != session:
                continue
            command = (entry / "cmdline").read_text(errors="replace")
            pages = int((entry / "statm").read_text().split()[1])
            name = next((words[word] for word in words if word in command), "other")
            found.setdefault(name, []).append(pages * os.sysconf("SC_PAGESIZE") / 1e6)
    return found


@contextmanager
def watched(session: int, words: Mapping[str, str]) -> Iterator[dict[str, float]]:
    """Watch a session in the block: name -> the most that one process of this name held, and `all` of them together."""
    most: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY_S):
            now = resident_mb(session, words)
            for name, each in (*now.items(), ("all", [mb for own in now.values() for mb in own])):
                most[name] = round(max(most.get(name, 0.0), sum(each) if name == "all" else max(each, default=0.0)), 1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()
