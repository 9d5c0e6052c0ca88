"""Who counts in a number over many patients: whole cohorts alone, so that no two numbers differ by a single patient.

The mean over n patients times n, less the mean over the others times n - 1, is the n-th one's own value: differencing
(Dwork and Roth 2014, section 1.1). What stops it is control of how query sets overlap (Dobkin, Jones, Lipton 1979): the
patients of a pool, which is a split or a fixed look at some of it, are sorted into cohorts of at least the policy's
`min_patients` when they are first counted. A cohort counts while all of its patients are there. Who leaves takes it
along, who comes waits until there are enough to make one, and so any two numbers differ by whole cohorts.

The cohorts are in the site's state folder, each patient as a keyed hash; a simulated site has none, and all count.
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clients.governance.state import State, read_record, write_record
from common.seeds import derive
from common.strict_text import parse_json

log = logging.getLogger("crossprobe.worker")

Cohort = tuple[str, ...]
#: Split, its patients, sorted, and how many a number looks at at most (None: all) -> who of them counts, sorted.
Counting = Callable[[str, Sequence[str], int | None], list[str]]

#: What to do where nobody knows any more who was counted with whom.
REMEDY = (
    "Restore the whole state folder from its latest backup. If there is none, your privacy officer has to decide: once "
    "this file is away and a new ledger has begun (crossprobe ledger renew), patients are sorted anew, and the "
    "difference to earlier numbers can be that of single patients."
)


def spaced(patients: Sequence[str], most: int | None) -> list[str]:
    """Return up to `most` of the patients, evenly spaced; None: all."""
    most = len(patients) if most is None else most
    step = max(1.0, len(patients) / max(1, most))
    return [patients[int(i * step)] for i in range(min(most, len(patients)))]


def everyone(split: str, patients: Sequence[str], most: int | None) -> list[str]:
    """Count all who are there, as a site does that remembers nothing."""
    return spaced(patients, most)


def whole(cohorts: Sequence[Cohort], present: Sequence[str], least: int) -> list[Cohort]:
    """Return the cohorts that count: large enough, and with everybody there."""
    here = set(present)
    return [cohort for cohort in cohorts if len(cohort) >= least and here.issuperset(cohort)]


def grown(cohorts: Sequence[Cohort], present: Sequence[str], least: int, most: int | None = None) -> list[Cohort]:
    """Return a pool's cohorts once those who came since are sorted in.

    Nobody ever changes his cohort and none is split; two become one where `least` grew.

    Args:
        cohorts: as they are so far; none the first time.
        present: the pool's patients as they are now, in the order in which new ones are taken.
        least: patients that a cohort needs.
        most: patients that a number looks at: newcomers are sorted in only where those who count leave room.
    """
    here = set(present)
    there = [cohort for cohort in cohorts if here.issuperset(cohort)]
    kept = [cohort for cohort in cohorts if not here.issuperset(cohort)] + _merged(there, least)
    known = {patient for cohort in cohorts for patient in cohort}
    waiting = [patient for patient in present if patient not in known]
    room = None if most is None else max(0, most - sum(map(len, whole(kept, present, least))))
    return kept + _groups(spaced(waiting, room), least)


def _groups(patients: Sequence[str], least: int) -> list[Cohort]:
    """Return them by `least` in a row, the rest in the last group; nothing where they are fewer."""
    starts = range(0, len(patients) - least + 1, least)
    return [tuple(patients[start : None if start == starts[-1] else start + least]) for start in starts]


def _merged(cohorts: Sequence[Cohort], least: int) -> list[Cohort]:
    """Return cohorts with those that are too small joined to their neighbours, as far as there are any."""
    found: list[Cohort] = []
    for cohort in cohorts:
        if found and len(found[-1]) < least:
            found[-1] += cohort
        else:
            found.append(cohort)
    if len(found) > 1 and len(found[-1]) < least:
        found[-2:] = [found[-2] + found[-1]]
    return found


class Cohorts:
    """The cohorts of one site, in its state folder, which its one process holds; for any number of threads.

    Args:
        name: of the site, for its log.
        least: the policy's `min_patients`.

    Raises:
        SiteStateError: if their file is damaged.
    """

    def __init__(self, state: State, name: str, least: int) -> None:
        self.state, self.name, self.least = state, name, least
        self._pools: Mapping[str, list[Cohort]] = read_record(state.cohorts, _pools, REMEDY) or {}
        self._lock = threading.Lock()
        self._told: dict[str, int] = {}

    @property
    def known(self) -> int:
        """How many patients were ever sorted into cohorts, of all pools together: it only grows."""
        return sum(len(cohort) for cohorts in self._pools.values() for cohort in cohorts)

    def counted(self, split: str, patients: Sequence[str], most: int | None) -> list[str]:
        """Return who counts, see `Counting`; whoever is sorted in on the way is on the disk before.

        Raises:
            SiteStateError: if that cannot be written.
        """
        pool = split if most is None else f"{split}, at most {most}"
        by_hash = {derive(self.state.secret(0), "cohort", patient).hex()[:32]: patient for patient in patients}
        with self._lock:
            before = self._pools.get(pool, [])
            cohorts = grown(before, list(by_hash), self.least, most)
            if cohorts != before:
                pools = {**self._pools, pool: cohorts}
                write_record(self.state.cohorts, {}, json.dumps(pools).encode())
                self._pools = pools
            counting = sorted(by_hash[own] for cohort in whole(cohorts, list(by_hash), self.least) for own in cohort)
            self._tell(pool, len(spaced(patients, most)) - len(counting))
        return counting

    def _tell(self, pool: str, waiting: int) -> None:
        """Tell the site's log, once, how many are in no number."""
        if waiting > 0 and self._told.get(pool) != waiting:
            log.warning(
                "%s: %d patients (%s) are in no number now: it counts whole groups of at least %d (min_patients); who "
                "leaves takes his group along, and who comes waits for one",
                self.name,
                waiting,
                pool,
                self.least,
            )
        self._told[pool] = waiting


def _pools(content: dict[str, Any], blob: bytes) -> dict[str, list[Cohort]]:
    """Return what the record holds. Raises ValueError, TypeError or AttributeError if it is not as it was written."""
    if content:
        raise ValueError
    return {pool: [tuple(cohort) for cohort in cohorts] for pool, cohorts in parse_json(blob, origin="cohorts").items()}
