"""Runs cases in processes of their own and judges how each ended."""

import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from simulations.fuzz.bombs import COUNT as BOMBS
from simulations.fuzz.bombs import bomb
from simulations.fuzz.cases import case, warm

#: What a case may take: of a processor's time, whatever else the machine does, and of memory. That is the whole
#: process', with torch and all libraries: some 300 MiB before it begins.
MOST_S, MOST_MIB = 30.0, 1024.0
#: When a case counts as stuck: after so many seconds on the clock with nearly none of a processor, or where it has had
#: twice what it may take and does not end. On a busy machine it is only slow.
STUCK_S = 120.0
#: More than `MOST_MIB`, so that what takes too much is seen, and is stopped before the machine is in need.
_DATA_BYTES, _FILE_BYTES = 2**32, 2**30
#: Cases that one process takes.
BATCH = 25
#: What a case may leave behind, see `Case`.
OUTPUT = ("out", "out.key", "out-before-after.png")


@dataclass(frozen=True)
class Ended:
    """How a case ended.

    Attributes:
        code: the exit code; None where the process ended otherwise.
        faults: empty for a clean result or a clear error.
    """

    number: int
    what: str
    code: int | None
    faults: tuple[str, ...]
    seconds: float = 0.0
    mib: float = 0.0


def run_cases(seed: int, numbers: Sequence[int]) -> Iterator[Ended]:
    """Run the cases; a process takes some of them, one after the other, and a new one follows it if it dies."""
    warm()  # here once, instead of in every process
    left = list(numbers)
    while left:
        with tempfile.TemporaryDirectory(prefix="crossprobe-fuzz-") as folder:
            done = list(_in_child(seed, left[:BATCH], Path(folder)))
        yield from done
        left = left[len(done) :]


def _in_child(seed: int, numbers: Sequence[int], folder: Path) -> Iterator[Ended]:
    """As many of the cases as a forked process manages; the one that it dies of is the last."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            _child(seed, numbers, folder, writer)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    pending, done = b"", 0
    begun = last = 0.0
    try:
        while done < len(numbers):
            ready, _, _ = select.select([reader], [], [], STUCK_S)
            part = os.read(reader, 2**16) if ready else b""
            now = _processor_s(pid)
            if not ready and now - last > STUCK_S / 100 and now - begun < 2 * MOST_S:
                last = now
                continue
            if not part:
                fault = "the process died" if ready else f"no end after {STUCK_S:.0f} s"
                what = (folder / "what").read_text() if (folder / "what").exists() else ""
                yield Ended(numbers[done], what, None, (fault,), seconds=0.0 if ready else STUCK_S)
                return
            begun = last = now
            *lines, pending = (pending + part).split(b"\n")
            for line in lines:
                content = json.loads(line)
                yield Ended(**{**content, "faults": tuple(content["faults"])})
                done += 1
    finally:
        os.kill(pid, signal.SIGKILL)  # our own child, not yet waited for
        os.waitpid(pid, 0)
        os.close(reader)


def _processor_s(pid: int) -> float:
    """What a process has had of a processor so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _child(seed: int, numbers: Sequence[int], folder: Path, writer: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (_DATA_BYTES, _DATA_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["COLUMNS"] = "200"
    printed = os.open(folder / "printed", os.O_RDWR | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(printed, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", encoding="utf-8", closefd=False) for stream in (1, 2))
    for number in numbers:
        own = folder / str(number)
        own.mkdir()
        ended = _judged(np.random.default_rng((seed, number)), number, own, folder, printed)
        os.write(writer, json.dumps(asdict(ended)).encode() + b"\n")
        _remove(own)


def _judged(rng: np.random.Generator, number: int, own: Path, folder: Path, printed: int) -> Ended:
    """Prepare a case, run it, and look at all that it left."""
    for name in ("home", "tmp"):
        (own / name).mkdir()
    drawn = bomb(number, own) if number < BOMBS else case(rng, own)
    (folder / "what").write_text(drawn.what, errors="replace")
    os.environ |= {"HOME": str(own / "home"), "TMPDIR": str(own / "tmp")}
    tempfile.tempdir = None
    os.chdir(own / "home")
    before = _listing(own)
    os.ftruncate(printed, 0)
    os.lseek(printed, 0, os.SEEK_SET)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    start, code, faults = time.process_time(), None, []
    try:
        code = drawn.run()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        faults.append(f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"[:300])
    seconds = time.process_time() - start
    sys.stdout.flush()
    sys.stderr.flush()
    shown = os.pread(printed, 2**20, 0).decode(errors="replace")
    mib = _peak_mib()
    faults += _said(shown, code) + _left(before, _listing(own))
    faults += [f"{seconds:.0f} s"] * (seconds > MOST_S) + [f"{mib:.0f} MiB"] * (mib > MOST_MIB)
    return Ended(number, drawn.what, code, tuple(faults), round(seconds, 3), round(mib, 1))


def _said(shown: str, code: int | None) -> list[str]:
    faults = []
    if "Traceback" in shown:
        last = [line for line in shown.splitlines() if line and not line.startswith(" ")]
        faults.append(f"a traceback was shown: {last[-1][:200] if last else ''}")
    if "Warning:" in shown:
        faults.append(f"a warning of a library was shown: {shown[max(0, shown.index('Warning:') - 150) :][:250]}")
    if code not in (None, 0, 1, 2):
        faults.append(f"exit code {code}")
    if code not in (None, 0) and not shown.strip():
        faults.append("it failed without a word")
    if strange := {letter for letter in shown if ord(letter) < 32 and letter not in "\n\t\r"}:
        faults.append(f"control characters were shown: {strange}")
    return faults


def _left(before: dict[str, str], after: dict[str, str]) -> list[str]:
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    outside = sorted(name for name in changed if name.split("/")[0] not in OUTPUT)
    faults = [f"files outside of the output: {', '.join(outside[:3])}"] if outside else []
    if links := [name for name in changed if after.get(name, "").startswith("link")]:
        faults.append(f"links in the output: {', '.join(links[:3])}")
    return faults


def _listing(folder: Path) -> dict[str, str]:
    """Every file and link below a folder, and what it holds."""
    found = {}
    for root, folders, names in os.walk(folder):
        for name in (*names, *folders):
            path = os.path.join(root, name)
            shown = os.fsencode(os.path.relpath(path, folder)).decode("utf-8", "backslashreplace")
            if os.path.islink(path):
                found[shown] = f"link to {os.readlink(path)}"
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    found[shown] = sha256(file.read()).hexdigest()
            else:
                found[shown] = "folder"
    return found


def _peak_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _remove(folder: Path) -> None:
    os.chdir(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
