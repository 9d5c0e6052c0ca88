"""The audit's record (JSON) and its tables (Markdown); no number of a table is typed in."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.audit.audit import MARGIN, REBUILT
from simulations.audit.numbers import NEAR
from simulations.publication import insert

#: The part of a document that holds the tables, see `simulations.publication.insert`.
PART = "audit"

Record = Mapping[str, Any]


def tables(records: Sequence[Record]) -> str:
    """Return the tables of several audits."""
    return "\n".join(line for own in records for line in _of_one(own))


def _of_one(own: Record) -> list[str]:
    lines = [f"`{own['command']}`", "", f"Seed {own['seed']}; {own['hardware']}.", ""]
    if own["reconstruction"]:
        lines += [*_reconstruction(own["reconstruction"]), ""]
    if own["membership"]:
        lines += [f"Membership, of the model `{own['model']}`:", "", *_membership(own["membership"]), ""]
    if own.get("numbers"):  # older records have none
        lines += [*_numbers(own["numbers"]), ""]
    return lines


def _reconstruction(rows: Sequence[Record]) -> Iterator[str]:
    yield (
        "| site | attack | patients a step | noise | under the site's own policy | rounds | correlation | of the same "
        f"with any other patient | rebuilt (> {REBUILT:g}, {MARGIN:g} above any other), of draws |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        noise = "-" if row["noise"] is None else f"{row['noise']:g}"
        answer = f"refused, `{row['answer']}`; limits lifted" if row["lifted"] else row["answer"]
        yield (
            f"| {row['site']} | {row['attack']} | {row['patients']} | {noise} | {answer} | {row['rounds']} | "
            f"{row['correlation']:.3f} | {row['other']:.3f} | {row['rebuilt']} of {row['drawn']} |"
        )


def _membership(rows: Sequence[Record]) -> Iterator[str]:
    yield "| site | attack | members, others | AUC [95 %] | found at 1 % false positives, % [95 %] |"
    yield "| --- | --- | --- | --- | --- |"
    for row in rows:
        yield (
            f"| {row['site']} | {row['attack']} | {row['members']}, {row['non_members']} | "
            f"{row['auc']:.2f} [{row['auc_ci95'][0]:.2f}, {row['auc_ci95'][1]:.2f}] | "
            f"{100 * row['tpr']:.0f} [{100 * row['tpr_ci95'][0]:.0f}, {100 * row['tpr_ci95'][1]:.0f}] |"
        )


def _numbers(rows: Sequence[Record]) -> Iterator[str]:
    yield (
        "| site | number | patients behind it | of these counts | under the site's own policy | patients attacked | "
        f"error | of a guess | told (alone in a difference, within {NEAR:g}, and the guess not) |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        counts = "whoever's cohort is whole" if row.get("cohorts") else "everybody, as if nothing were kept"
        yield (
            f"| {row['site']} | {row['number']} | {row['patients']} | {counts} | {row['answer']} | {row['attacked']} | "
            f"{row['error']:.3f} | {row['guess']:.3f} | {row['told']} |"
        )


def publish(document: Path, records: Path) -> None:
    """Put the tables of all audits in a folder into their part of a document. Raises RunError."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(records.glob("*.json"))]
    insert(document, PART, tables([own for own in found if "reconstruction" in own]))  # others may lie there
