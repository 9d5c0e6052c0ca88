"""Many sites on one page: each role's spread, and its best, median and worst sites, instead of a row for each."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from common.components import ROLES, Role
from server.report.charts import axis_over
from server.report.conclusions import RELEASED, Conclusion
from server.report.dots import Box, Pair, Spread, box_chart, paired_chart
from server.report.tables import Attendance
from server.state import Participant

#: Sites up to which each has its own rows and charts; beyond, a reader looks at roles.
MANY_SITES = 40
#: Of those, how many are named: at each end of the ranking, and of those that lack replies.
RANKED, TROUBLED = 3, 20

#: Site -> predictor -> what the summary says of a measure.
Matrix = Mapping[str, Mapping[str, Any]]


class OfRole(NamedTuple):
    """What a role's sites have in common: Dice in percent by predictor, and for those with a baseline the pairs."""

    role: Role
    sites: int
    boxes: Markup
    pairs: Markup | None


class Ranked(NamedTuple):
    """A site that stands for others by the released model's Dice, and which it is of how many: `best of 20`."""

    rank: str
    conclusion: Conclusion


def spread(values: Sequence[float]) -> Spread:
    """Return how values of at least one site spread."""
    return Spread(len(values), *(float(v) for v in np.quantile(values, (0, 0.25, 0.5, 0.75, 1))))


def spreads(
    matrix: Matrix, participants: Mapping[str, Participant], predictors: Sequence[str], scale: float
) -> dict[Role, dict[str, Spread]]:
    """Return role -> predictor -> the spread of a measure's means over the role's sites, where any reports it."""
    found: dict[Role, dict[str, Spread]] = {}
    for role in ROLES[::-1]:
        own = [cells for site, cells in matrix.items() if participants[site].role == role]
        by_predictor = {
            name: spread(values)
            for name in predictors
            if (values := [scale * cells[name]["mean"] for cells in own if name in cells])
        }
        if by_predictor:
            found[role] = by_predictor
    return found


def role_charts(matrix: Matrix, participants: Mapping[str, Participant], predictors: Sequence[str]) -> list[OfRole]:
    """Return the Dice of each role's sites in percent, all roles on one axis."""
    found = spreads(matrix, participants, predictors, 100.0)
    axis = axis_over([bound for own in found.values() for box in own.values() for bound in (box.low, box.high)])
    charts = []
    for role, own in found.items():
        boxes = [Box(name.replace("_", " "), name, box) for name, box in own.items()]
        pairs = [
            Pair(100 * cells["baseline"]["mean"], 100 * cells[RELEASED]["mean"], f"{site}:")
            for site, cells in matrix.items()
            if participants[site].role == role and {"baseline", RELEASED} <= cells.keys()
        ]
        over = axis_over([value for pair in pairs for value in (pair.baseline, pair.method)])
        charts.append(
            OfRole(
                role,
                max(box.sites for box in own.values()),
                box_chart(boxes, axis, title=f"Dice in percent over the {role} sites: least, quartiles, largest"),
                paired_chart(pairs, over, title=f"Dice in percent of each {role} site, baseline and released model")
                if pairs
                else None,
            )
        )
    return charts


def ranked(conclusions: Sequence[Conclusion]) -> list[Ranked]:
    """Return of each role the `RANKED` best and worst sites and the median one, by the released model's Dice."""
    found = []
    for role in ROLES[::-1]:
        known = [conclusion for conclusion in conclusions if conclusion.role == role and conclusion.dice is not None]
        own = sorted(known, key=lambda conclusion: (-(conclusion.dice or 0.0), conclusion.site))
        last = len(own) - 1
        names = {0: "best", last: "worst", last // 2: "median"}
        chosen = {*range(len(own))[:RANKED], *range(len(own))[-RANKED:], *([last // 2] if own else [])}
        found += [Ranked(f"{names.get(i, i + 1)} of {len(own)}", own[i]) for i in sorted(chosen)]
    return found


class Presence(NamedTuple):
    """The replies of all sites of a role; `seconds` is the median of their mean times, or None."""

    role: str
    sites: int
    patients: int
    asked: int
    ok: int
    refused: int
    late: int
    failed: int
    seconds: float | None


def presence(rows: Sequence[Attendance]) -> list[Presence]:
    """Return one row a role."""
    found = []
    for role in ROLES[::-1]:
        own = [row for row in rows if row.role == role]
        times = [row.seconds for row in own if row.seconds is not None]
        counts = {
            name: sum(getattr(row, name) for row in own)
            for name in ("patients", "asked", "ok", "refused", "late", "failed")
        }
        if own:
            found.append(Presence(role, len(own), **counts, seconds=float(np.median(times)) if times else None))
    return found


def troubled(rows: Sequence[Attendance]) -> list[Attendance]:
    """Return up to `TROUBLED` sites whose replies did not all count, those that lack most first."""
    lacking = [row for row in rows if row.ok < row.asked]
    return sorted(lacking, key=lambda row: (row.ok - row.asked, row.site))[:TROUBLED]
