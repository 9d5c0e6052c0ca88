"""A page's tables as CSV files within the page: links that save them, without a server or a script."""

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from common.components import ROLES
from common.metric_name import MEASURES
from common.spreadsheet import plain_cell
from server.report.curves import RoundNumbers
from server.report.tables import Attendance, Problem, Traffic


def data_uri(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a CSV file as a `data:` address. Text that a spreadsheet would run as a formula is made text."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(file.getvalue().encode()).decode()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return plain_cell(value)
    return round(value, 5) if isinstance(value, float) else value


def results(summary: Mapping[str, Any], predictors: Sequence[str]) -> str:
    """Return every measure of every site: one row a site and predictor; shares and Dice in [0, 1], HD95 as shown."""
    header = ["site", "role", "predictor", "test_patients"]
    header += [f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")]
    header += [f"dice_difference{end}" for end in ("", "_low", "_high")]
    rows = []
    for site, role in summary["roles"].items():
        for name in predictors:
            found = [summary[measure].get(site, {}).get(name) for measure in MEASURES]
            if not any(found):
                continue
            difference = summary["difference_to_baseline"].get(site, {}).get(name)
            numbers = [number for own in (*found, difference) for number in _numbers(own)]
            rows.append([site, role, name, next(own["patients"] for own in found if own), *numbers])
    return data_uri(header, rows)


def _numbers(own: Mapping[str, Any] | None) -> list[Any]:
    return [own["mean"], *own["ci95"]] if own else ["", "", ""]


def rounds(numbers: Sequence[RoundNumbers]) -> str:
    """Return one row a counted round."""
    header = ["round", "stage", "score", "validation_dice", *(f"loss_{role}" for role in ROLES), "seconds", "undone"]
    rows = [
        [r.round, r.stage, r.score, r.val_dice, *(r.loss[x] for x in ROLES), r.seconds, r.rolled_back] for r in numbers
    ]
    return data_uri(header, rows)


def rows_of(rows: Sequence[Attendance] | Sequence[Problem] | Sequence[Traffic]) -> str:
    """Return rows of one of the page's tables, named as their fields."""
    content = [asdict(row) for row in rows]
    return data_uri(list(content[0]) if content else [], [list(row.values()) for row in content])
