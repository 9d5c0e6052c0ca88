"""history.jsonl: one line a round, appended before the checkpoint; the record that people and reports read."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from common.errors import RunError
from common.files import PRIVATE, write_atomically
from common.run_folder import GO_ON, RunFolder
from common.study import Study

#: Share of a round's deadline; a site that takes longer may well miss the next one.
SLOW_SHARE = 0.5
SiteState = Literal["in", "slow", "lost", "refused"]
_STATES: dict[str, SiteState] = {"failed": "lost", "refused": "refused", "late": "slow"}


@dataclass(frozen=True)
class SiteRecord:
    """What one site did in one round.

    Attributes:
        status: `ok`, `refused` (its reply broke the contract, or it said no), `failed`, `late`, or `unused` (it is in a
            sum under masks that could not be had).
        detail: code and reason where it is not ok.
        ledger_head: head of the site's ledger as its reply gave it, see `common.messages.TaskReply`;
            `crossprobe ledger verify --head` at the site holds its ledger against it. Empty: none.
    """

    role: str
    task: str
    status: str
    detail: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    bytes_to: int = 0
    bytes_from: int = 0
    seconds: float = 0.0
    ledger_head: str = ""


@dataclass(frozen=True)
class RoundRecord:
    """One round, or one attempt at it that fell short of quorum (`counted` False).

    Attributes:
        score: patient-weighted label-free score of the model that the sites received, or None.
        released_round: round whose received model would be released now, see `server.algorithm`.
        rolled_back: the updates were dropped and the released model restored.
    """

    round: int
    stage: str
    started: str
    seconds: float
    sites: dict[str, SiteRecord]
    counted: bool = True
    score: float | None = None
    released_round: int | None = None
    rolled_back: bool = False


_RECORD = TypeAdapter(RoundRecord)


def state_of(own: SiteRecord, deadline_s: float) -> tuple[SiteState, str]:
    """Return how a site does by its last round, and why where that is not well.

    It is `in` (its reply counted), `slow` (late, or after half the deadline), `lost` (its reply never came) or
    `refused` (it said no, or its reply broke the contract).

    Args:
        deadline_s: of a round; 0 where nothing tells it.
    """
    state = _STATES.get(own.status, "in")
    if state == "in" and own.seconds > SLOW_SHARE * deadline_s > 0:
        return "slow", "its last reply took more than half the deadline"
    return state, own.detail


def losses(record: RoundRecord) -> dict[str, float]:
    """Task -> the mean loss of the sites that told one; sites with many patients count no more than others."""
    found: dict[str, list[float]] = {}
    for site in record.sites.values():
        if "loss" in site.metrics:
            found.setdefault(site.task, []).append(site.metrics["loss"])
    return {task: sum(values) / len(values) for task, values in found.items()}


def time_left(study: Study, next_round: int, records: Sequence[RoundRecord], passed: timedelta) -> float | None:
    """Return the seconds that the rounds from `next_round` on will take, or None before the first round has ended.

    Args:
        passed: since `next_round` began.

    A round takes as long as the median one of its stage, where the stage has any, else as the median of all.
    """
    counted = [record for record in records if record.counted]
    if not counted:
        return None
    of_all = median(record.seconds for record in counted)

    def expected(stage: str) -> float:
        own = [record.seconds for record in counted if record.stage == stage]
        return median(own) if own else of_all

    coming = [expected(round_.stage.name) for round_ in study.rounds()[next_round:]]
    if coming:
        coming[0] = max(0.0, coming[0] - passed.total_seconds())
    return sum(coming)


def append(run: Path, record: RoundRecord) -> None:
    """Append a record and bring it to the disk.

    Raises:
        RunError: if it cannot be written.
    """
    path = RunFolder(run).history
    try:
        with open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, PRIVATE)) as file:
            file.write(json.dumps(asdict(record), separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}. The last checkpoint is intact: "
            f"free some space or fix the permissions, then {GO_ON}."
        ) from None


def read(run: Path) -> list[RoundRecord]:
    """Return all records of a run; a last line cut short by a crash is left out.

    What follows a run asks every second: of many sites the file has megabytes, and is read again only once it changed.

    Raises:
        RunError: if any other line is no record.
    """
    path = RunFolder(run).history
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return []
    return list(_read(path, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=2)  # a run and its baseline
def _read(path: Path, inode: int, size: int, changed_ns: int) -> tuple[RoundRecord, ...]:
    records, lines = [], path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            records.append(_RECORD.validate_json(line))
        except ValidationError as error:
            (first, *_) = error.errors()
            if number == len(lines) and first["type"] == "json_invalid":
                break
            raise RunError(
                f"{path} line {number}: expected the record of a round, found what is none ({first['msg']}). Restore "
                "the file from a backup."
            ) from None
    return tuple(records)


def rewind(run: Path, next_round: int) -> None:
    """Drop the records of rounds that the checkpoint does not hold, so that a resumed run repeats none.

    Attempts at the next round that fell short of quorum happened, and stay.
    """
    kept = [r for r in read(run) if r.round < next_round or (r.round == next_round and not r.counted)]
    lines = [json.dumps(asdict(record), separators=(",", ":")) + "\n" for record in kept]
    write_atomically(RunFolder(run).history, "".join(lines).encode(), then=GO_ON)
