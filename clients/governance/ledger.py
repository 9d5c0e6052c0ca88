"""A site's ledger: one line for every message in and out, each bound to the one before by its hash.

Line by line JSON. `prev` is the SHA-256 of the line before (64 zeros in the first) and `own`, always last, that of the
line itself up to it. So a changed, removed or moved line breaks the chain. Whoever can write the file can also make a
whole new chain, or cut its end: that shows only against a head, the SHA-256 of a line, which each reply takes with it
and the coordinator keeps. `salt` is random: without it the coordinator could try what a line may say of the site, such
as how many patients it has, until its hash is the head.

By hand: a hospital can check any line with `sha256sum` alone, without this or any other library.
"""

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from common.errors import SiteStateError
from common.messages import Header, Message, Refusal, TaskReply, TaskRequest, UnmaskReply, UnmaskRequest, digest

log = logging.getLogger("crossprobe.worker")

FIRST = "0" * 64
#: By how much a clock may step back, as it does when it is set by the network.
CLOCK_STEP = timedelta(minutes=5)
#: What comes in may carry any names: only plain ones, and not more than a study could have, are written down.
_PLAIN, _MOST_TENSORS = re.compile(r"[\w./]{1,120}"), 2000
_BLOCK = 1 << 16
_OWN = re.compile(rb'(\{.*),"own":"([0-9a-f]{64})"\}', re.DOTALL)


#: What to do where no right ledger can be had any more.
RENEW = "A new one, which the coordinator's heads will tell from the old, begins with: crossprobe ledger renew"


_SOME_TIME = datetime.fromtimestamp(0, UTC)


class LedgerError(SiteStateError):
    """The ledger cannot be written or is broken; nothing may leave."""


@dataclass(frozen=True)
class Damage:
    """A place where the chain breaks: the number of a line, from 1, and what is wrong there."""

    line: int
    message: str


@dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    Attributes:
        lines: whole lines in the file.
        proven: lines up to the one whose head was given; 0 without a head or where no line has it.
        head: of the last line; `FIRST` for an empty ledger.
        latest: the latest time of any line, ISO 8601; empty for an empty ledger.
    """

    lines: int
    proven: int
    head: str
    latest: str
    damage: tuple[Damage, ...]


def entry(
    direction: Literal["in", "out"],
    message: Message | bytes,
    request: Header | None = None,
    epsilon: float | None = None,
    *,
    charges: int | None = None,
    start: int | None = None,
) -> dict[str, Any]:
    """Return what the ledger says of a message.

    Args:
        message: or bytes that are no message of ours.
        request: what it answers; a refusal does not name its study, round and task itself.
        epsilon: of all that left the site so far, this message included; None where none holds.
        charges: how many the accountant knows, this message's included; for `rollback_check`.
        start: how often the study had been started over when a task of it was answered; for `rollback_check`.

    Keys: time (UTC), direction, kind, study, start, round, task, tensors (name -> shape), bytes, sha256 of
    the whole payload, metrics as sent, epsilon, charges, refusal code, accountant: SHA-256 of its file when the line
    was written, cohorts: how many patients were sorted into some until then, and unwritten: how many messages were
    refused as `too-many-messages` between the line before and this one.
    """
    header, tensors, payload = (
        (None, {}, message) if isinstance(message, bytes) else (message.header, message.tensors, message.payload)
    )
    names = sorted(name for name in tensors if _PLAIN.fullmatch(name))[:_MOST_TENSORS]
    about = request if isinstance(header, Refusal) else header
    task = about if isinstance(about, TaskRequest | TaskReply | UnmaskRequest | UnmaskReply) else None
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "direction": direction,
        "kind": getattr(header, "kind", "unreadable"),
        "study": getattr(about, "study", None),
        "start": start,
        "round": task.round if task else None,
        "task": task.task if task else None,
        "tensors": {name: list(np.shape(tensors[name])) for name in names},
        "bytes": len(payload),
        "sha256": digest(payload),
        "metrics": header.metrics if direction == "out" and isinstance(header, TaskReply) else {},
        "epsilon": epsilon,
        "charges": charges,
        "refusal": getattr(header, "code", None),
        "accountant": None,
        "cohorts": None,
        "unwritten": 0,
    }


class Ledger:
    """The ledger of a running worker. Only one process may hold it, see `State.locked`.

    Raises:
        LedgerError: if the file cannot be read or its chain is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._drop_torn_line()
        verdict = verify(path)
        if verdict.damage:
            first = verdict.damage[0]
            raise LedgerError(
                f"{path} is damaged at line {first.line}: {first.message}. Show it to your privacy officer. {RENEW}"
            )
        self.head = verdict.head
        self._latest = datetime.fromisoformat(verdict.latest) if verdict.latest else None
        self._size = path.stat().st_size if path.exists() else 0

    def now(self) -> datetime:
        """Return the time, UTC, never before that of a line: a clock that was set back brings nothing back."""
        now = datetime.now(UTC)
        return now if self._latest is None else max(now, self._latest)

    def append(self, content: Mapping[str, Any]) -> str:
        """Bring a line to the disk and return the new head.

        Raises:
            LedgerError: if that fails, if the file was changed meanwhile, or if the clock ran backwards; the file is as
                it was.
        """
        with self._lock:
            time = datetime.fromisoformat(content["time"])
            if self._latest is not None and time < self._latest - CLOCK_STEP:
                raise LedgerError(
                    f"{self.path} has a line of {self._latest:%Y-%m-%d %H:%M} UTC, and the clock says "
                    f"{time:%Y-%m-%d %H:%M}. "
                    f"Set the clock right. If it was wrong then: {RENEW}"
                )
            salted = {**content, "salt": secrets.token_hex(16), "prev": self.head}
            body = json.dumps(salted, separators=(",", ":"), allow_nan=False).encode()[:-1]
            line = body + b',"own":"' + digest(body).encode() + b'"}'
            try:
                with open(self.path, "ab", buffering=0, opener=_private) as file:
                    if os.fstat(file.fileno()).st_size != self._size:
                        raise LedgerError(f"{self.path} was changed by somebody else. Stop the worker and look at it.")
                    try:
                        if file.write(line + b"\n") <= len(line):
                            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                        os.fsync(file.fileno())
                    except OSError:
                        with contextlib.suppress(OSError):
                            file.truncate(self._size)  # half a line would break the chain
                        raise
            except OSError as error:
                raise LedgerError(f"cannot write {self.path}: {error.strerror}. Nothing left the site.") from None
            self._size += len(line) + 1
            self._latest = time if self._latest is None else max(time, self._latest)
            self.head = digest(line)
            return self.head

    def _drop_torn_line(self) -> None:
        """Remove a last line that a crash cut short. What it would have recorded never left."""
        try:
            with open(self.path, "rb+") as file:
                os.fchmod(file.fileno(), 0o600)  # one that an earlier version left open to others
                whole, size = _last_break(file)
                if whole < size:
                    log.warning("%s: dropped a last line that was cut short by a crash", self.path)
                    file.truncate(whole)
        except FileNotFoundError:
            return
        except OSError as error:
            raise LedgerError(f"cannot read {self.path}: {error.strerror}. Run as the worker's user.") from None


def _last_break(file: BinaryIO) -> tuple[int, int]:
    """Return how many bytes of a file are whole lines, and how many it has; read from its end: it may be large."""
    start = size = file.seek(0, os.SEEK_END)
    while start:
        end, start = start, max(0, start - _BLOCK)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1, size
    return 0, size


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def verify(path: Path, head: str | None = None) -> Verdict:
    """Check a ledger's chain and, with `head`, that the line with this head is still in it.

    Raises:
        LedgerError: if the file cannot be read.
    """
    damage, before, proven, number = [], FIRST, 0, 0
    latest: datetime | None = None
    for number, (line, whole) in enumerate(_lines(path), 1):
        content = _content(line)
        time = None if content is None else datetime.fromisoformat(content["time"])
        if not whole:
            damage.append(Damage(number, "the last line is cut short, or is being written just now"))
        elif content is None:
            damage.append(Damage(number, "the line was changed: it does not have its own hash"))
        elif content["prev"] != before:
            damage.append(Damage(number, "the line before it was changed, removed, added or moved"))
        elif time is not None and latest is not None and time < latest - CLOCK_STEP:
            damage.append(Damage(number, f"its time is before that of a line before it, {latest:%Y-%m-%d %H:%M} UTC"))
        if time is not None:
            latest = time if latest is None else max(latest, time)
        before = digest(line)
        if before == head:
            proven = number
    if head is not None and not proven:
        damage.append(Damage(number + 1, "no line has the given head: the end was cut off, or the file was rewritten"))
    return Verdict(number, proven, before, latest.isoformat() if latest else "", tuple(damage))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield all entries that can be read, oldest first. Raises LedgerError if the file cannot be."""
    return (content for content in (_content(line) for line, _ in _lines(path)) if content is not None)


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Yield each line without its line break, and whether it has one."""
    try:
        with open(path, "rb") as file:
            for line in file:
                yield line.removesuffix(b"\n"), line.endswith(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise LedgerError(f"cannot read {path}: {error.strerror}. Run as the worker's user.") from None


def _content(line: bytes) -> dict[str, Any] | None:
    """Return an entry without `own`, or None for a line that does not have its own hash."""
    match = _OWN.fullmatch(line)
    if match is None or digest(match[1]) != match[2].decode():
        return None
    try:
        content: dict[str, Any] = json.loads(match[1] + b"}")
        datetime.fromisoformat(content["time"]) - _SOME_TIME
    except (ValueError, KeyError, TypeError):  # also: a time without its zone, which compares with no other
        return None
    return content if "prev" in content else None
