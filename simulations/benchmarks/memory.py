"""The memory of process trees while they work, by what their processes do."""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

EVERY_S = 0.3


def descendants(root: int) -> set[int]:
    """Return a process's id and those of all processes that it, or one of these, started, while their parents live."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):  # it ended
            # the program's name, in brackets, may hold anything
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def resident_mb(root: int, words: Mapping[str, str]) -> dict[str, list[float]]:
    """Return the resident memory, MB (10^6 bytes), of a process and all that it started.

    Args:
        words: what a process's command holds -> what it is called; the first that fits counts, others are `other`.
    """
    found: dict[str, list[float]] = {}
    for pid in descendants(root):
        with contextlib.suppress(OSError):  # it ended
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            name = next((words[word] for word in words if word in command), "other")
            found.setdefault(name, []).append(pages * os.sysconf("SC_PAGESIZE") / 1e6)
    return found


@contextmanager
def watched(root: int, words: Mapping[str, str]) -> Iterator[dict[str, float]]:
    """Watch a process and all that it starts in the block, for the most that it held.

    Yields:
        What fills: name -> the most that one process of this name held, MB, and `all` -> all of them together.
    """
    most: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY_S):
            now = resident_mb(root, words)
            for name, each in (*now.items(), ("all", [mb for own in now.values() for mb in own])):
                most[name] = round(max(most.get(name, 0.0), sum(each) if name == "all" else max(each, default=0.0)), 1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()
