"""Who took part in a run, what did not count, and what travelled: rows counted from its history."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from server.history import RoundRecord
from server.state import ServerState


@dataclass(frozen=True)
class Attendance:
    """How often a site was asked and what became of its replies; attempts below quorum count too.

    Attributes:
        patients: training patients as the site declared them.
        seconds: mean time from request to a reply that counted, or None.
    """

    site: str
    role: str
    patients: int
    asked: int
    ok: int
    refused: int
    late: int
    failed: int
    seconds: float | None


@dataclass(frozen=True)
class Problem:
    """Replies of one site that did not count for one reason, and the rounds they belong to."""

    site: str
    status: str
    reason: str
    rounds: str


@dataclass(frozen=True)
class Traffic:
    """What travelled in one stage, in bytes of messages, all attempts included."""

    stage: str
    rounds: int
    to_sites: int
    from_sites: int
    seconds: float


def participants(state: ServerState, records: Sequence[RoundRecord]) -> list[Attendance]:
    """Return one row a site, in the order of the participants."""
    rows = []
    for site, participant in state.participants.items():
        own = [record.sites[site] for record in records if site in record.sites]
        count = Counter(entry.status for entry in own)
        times = [entry.seconds for entry in own if entry.status == "ok"]
        rows.append(
            Attendance(
                site=site,
                role=participant.role,
                patients=participant.patients,
                asked=len(own),
                ok=count["ok"],
                refused=count["refused"],
                late=count["late"],
                failed=count["failed"],
                seconds=sum(times) / len(times) if times else None,
            )
        )
    return rows


def problems(records: Sequence[RoundRecord]) -> list[Problem]:
    """Return replies that did not count, gathered by site and reason, in the order they first happened."""
    found: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for record in records:
        for site, entry in record.sites.items():
            if entry.status != "ok":
                found[site, entry.status, entry.detail].append(record.round)
    return [Problem(*key, rounds=_spans(rounds)) for key, rounds in found.items()]


def _spans(rounds: Sequence[int]) -> str:
    """Return sorted round numbers with runs drawn together: `2, 5–9`."""
    unique = sorted(set(rounds))
    groups = groupby(enumerate(unique), lambda pair: pair[1] - pair[0])
    spans = [[value for _, value in group] for _, group in groups]
    return ", ".join(f"{span[0]}" if len(span) == 1 else f"{span[0]}–{span[-1]}" for span in spans)


def traffic(records: Sequence[RoundRecord]) -> list[Traffic]:
    """Return one row a stage, in the order of the rounds."""
    rows = []
    for stage, group in groupby(records, lambda record: record.stage):
        own = list(group)
        sites = [entry for record in own for entry in record.sites.values()]
        rows.append(
            Traffic(
                stage=stage,
                rounds=sum(record.counted for record in own),
                to_sites=sum(entry.bytes_to for entry in sites),
                from_sites=sum(entry.bytes_from for entry in sites),
                seconds=sum(record.seconds for record in own),
            )
        )
    return rows


def whole_time(*runs: Sequence[RoundRecord]) -> float:
    """Return the seconds from the beginning of these runs' first round to the end of their last, pauses included."""
    records = [record for records in runs for record in records]
    begins = [datetime.fromisoformat(record.started).timestamp() for record in records]
    ends = [begin + record.seconds for begin, record in zip(begins, records, strict=True)]
    return max(ends) - min(begins) if records else 0.0


def unlisted(state: ServerState, records: Sequence[RoundRecord]) -> tuple[int, int]:
    """Return bytes to and from sites that the checkpoint counts but the history no longer lists.

    A resumed run drops the records of attempts after its checkpoint; what they sent stays counted.
    """
    rows = traffic(records)
    to_sites = state.bytes_to_sites - sum(row.to_sites for row in rows)
    from_sites = state.bytes_from_sites - sum(row.from_sites for row in rows)
    return max(0, to_sites), max(0, from_sites)
