"""What each page of the desk shows: plain data for a template, in the order in which a privacy officer reads."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from clients.data.contact_sheet import FOLDERS
from clients.data.site import read_config
from clients.desk import predictions as kept
from clients.desk.changes import changes
from clients.desk.desk import Case, Desk, case_of, latest_other
from clients.desk.gate import FIELD
from clients.desk.work import DeskError
from clients.governance.accountant import Accountant, smaller_cap
from clients.governance.approval_words import declared, of_budget, signature, summed_with, what_it_tells
from clients.governance.decisions import decisions
from clients.governance.disclosure import explain
from clients.governance.fit import kept_back as held_back
from clients.governance.ledger import read, verify
from clients.governance.proposal import Proposal
from clients.predict import TABLE
from common.components import MEANINGS, component_of
from common.errors import SiteStateError
from common.fingerprint import fingerprint
from common.tasks import TASKS

#: Messages of the ledger on a page; `crossprobe ledger show` has all.
MOST_MESSAGES = 200
MOST_NUMBERS = 6
#: Pictures on a page of a prediction.
MOST_PICTURES = 24

ENVIRONMENT = Environment(
    loader=FileSystemLoader([Path(__file__).parent, *FOLDERS]),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
#: What a page says after a form was sent, by the word in its address.
DONE = {
    "checking": "The data check has begun.",
    "trying": "The dry run has begun. Nothing is sent.",
    "approved": "Approved. The coordinator's next message about this study will be answered.",
    "half": "Written down. It holds once another person has approved it too.",
    "segmenting": "The images are being segmented. What is drawn on them stays in this hospital.",
    "stopped": "It ends with what it is at now. Nothing of it is kept.",
    "withdrawn": "Taken back. Nothing more of this study leaves from now on, also not from a running task.",
}


@dataclass(frozen=True)
class Bar:
    """A privacy budget: epsilon spent, and with a study added, of a cap, at a delta."""

    words: str
    spent: float
    after: float
    cap: float
    delta: float

    def share(self, epsilon: float) -> float:
        """Return how much of the bar an epsilon fills, in percent."""
        return round(100 * min(epsilon / self.cap, 1.0), 2)


def render(template: str, desk: Desk, csrf: str, **content: Any) -> bytes:
    """Return a page with what all pages have."""
    config, _ = read_config(desk.folder / "site.yaml", [])  # before the data were looked at, too
    common = {"desk": desk, "csrf": csrf, "field": FIELD, "name": config.name if config else desk.folder.name}
    return ENVIRONMENT.get_template(template).render({"notice": "", **common, **content}).encode()


def style() -> bytes:
    """Return the desk's style sheet."""
    return ENVIRONMENT.get_template("desk.css.j2").render().encode()


def overview(desk: Desk) -> dict[str, Any]:
    """Return site, studies, privacy budget and the latest messages."""
    cases, problems = desk.cases()
    days, count, _ = timeline(read(desk.state.ledger), cases, most=4)
    return {"cases": cases, "problems": problems, "days": days, "count": count} | budget(desk, cases)


def study(desk: Desk, study_hash: str) -> dict[str, Any]:
    """Return all of one study. Raises DeskError if it is not known."""
    cases, _ = desk.cases()
    case = case_of(study_hash, cases)
    before = latest_other(cases, case)
    shown: dict[str, Any] = {"case": case, "before": before, "changed": {}, "tried": desk.tried.get(study_hash)}
    shown |= _answered(desk, study_hash)
    proposal = case.proposal
    if proposal is None:
        return shown
    if before is not None and before.proposal is not None:
        shown["changed"] = changes(before.proposal, proposal)
    own, site = proposal.budget, desk.checked.site if desk.checked else None
    return shown | {
        "two": site is not None and site.config.policy.approvals_needed > 1,
        "signature": signature(fingerprint(desk.key) if desk.key else None),
        "summed_with": list(summed_with(proposal, {name: fingerprint(key) for name, key in desk.sites.items()})),
        "tells": what_it_tells(proposal),
        "declared": declared(proposal),
        "networks": _networks(proposal),
        "numbers": explain(proposal.metrics),
        "kept": held_back(case.study, site) if site else [],
        "meanings": {name: TASKS[name].meaning for name in dict.fromkeys(stage.task for stage in proposal.stages)},
        "budget": list(of_budget(own)) if own else [],
        "bar": Bar("all studies together", own.before, own.after, own.cap, own.settings.delta) if own else None,
    }


def _answered(desk: Desk, study_hash: str) -> dict[str, Any]:
    """Return the study's latest round that was answered here, from 1 on; 0: none."""
    try:
        return {"answered": desk.state.answered(study_hash).round + 1, "damage": ""}
    except SiteStateError as error:  # it must not keep anybody from withdrawing
        return {"answered": 0, "damage": str(error)}


def predictions(desk: Desk) -> dict[str, Any]:
    """Return what can be segmented with what, and what was."""
    places, site = desk.places, desk.checked.site if desk.checked and not desk.stale else None
    if places is None:
        return {"places": None}
    made, damaged = kept.read(places.kept)
    return {
        "places": places,
        "models": list(kept.releases(places.models)),
        "choices": kept.choices(site, places.images),
        "made": made,
        "damaged": damaged,
    }


def prediction(desk: Desk, name: str, page: int) -> dict[str, Any]:
    """Return one page of a prediction's pictures, those to look at again first. Raises DeskError if there is none."""
    folder, found = _prediction(desk, name)
    rows = sorted(enumerate(found.rows, 1), key=lambda row: not row[1].look_again)
    pages = max(1, -(-len(rows) // MOST_PICTURES))
    if not 1 <= page <= pages:
        raise DeskError("This prediction has no such page.")
    shown = rows[(page - 1) * MOST_PICTURES : page * MOST_PICTURES]
    return {
        "made": found,
        "folder": folder / name,
        "page": page,
        "pages": pages,
        "shown": [(number, row, kept.pictures(folder, found, row, kept.SMALL)) for number, row in shown],
    }


def picture(desk: Desk, name: str, number: int) -> dict[str, Any]:
    """Return one picture of a prediction, counted from 1. Raises DeskError if there is none."""
    folder, found = _prediction(desk, name)
    if not 1 <= number <= len(found.rows):
        raise DeskError("This prediction has no such picture.")
    row = found.rows[number - 1]
    return {"made": found, "number": number, "row": row, "pictures": kept.pictures(folder, found, row, kept.LARGE)}


def results(desk: Desk, name: str) -> bytes:
    """Return a prediction's table as it lies there. Raises DeskError if there is none."""
    folder, _ = _prediction(desk, name)
    try:
        return (folder / name / TABLE).read_bytes()
    except OSError as error:
        raise DeskError(f"The table cannot be read: {error.strerror}.") from None


def _prediction(desk: Desk, name: str) -> tuple[Path, kept.Prediction]:
    found = kept.find(desk.places.kept, name) if desk.places else None
    if desk.places is None or found is None:
        raise DeskError("There is no such prediction here.")
    return desk.places.kept, found


def ledger(desk: Desk) -> dict[str, Any]:
    """Return the ledger as a timeline, newest first, with whether its chain is whole, and who decided what."""
    cases, _ = desk.cases()
    days, count, sent = timeline(read(desk.state.ledger), cases, most=MOST_MESSAGES)
    verdict = verify(desk.state.ledger)
    decided = decisions(desk.state.decisions)[::-1]
    return {"days": days, "count": count, "sent": sent, "verdict": verdict, "decided": decided} | budget(desk, cases)


def budget(desk: Desk, cases: Sequence[Case]) -> dict[str, Any]:
    """Return the site's budget at cap and delta of each study with privacy, and how many it answered without."""
    accountant, bars = Accountant(desk.state.accountant), []
    site = desk.checked.site if desk.checked else None
    for case in cases:
        privacy = case.study.privacy
        if privacy is not None:
            cap = smaller_cap(privacy, site.config.policy.epsilon_cap if site else None)
            spent = accountant.epsilon(privacy.delta)
            bars.append(Bar(f"study {case.study.name}", spent, spent, cap, privacy.delta))
    return {"bars": bars, "unbounded": len(accountant.unbounded)}


@dataclass(frozen=True)
class Moment:
    """One message in words."""

    time: str
    out: bool
    study: str
    what: str
    details: tuple[str, ...]
    refused: bool


def timeline(
    entries: Iterable[dict[str, Any]], cases: Iterable[Case], *, most: int
) -> tuple[list[tuple[str, list[Moment]]], int, str]:
    """Return the latest messages by day, newest first; how many there are; and what left in all."""
    names = {case.hash: case.study.name for case in cases}
    days: dict[str, list[Moment]] = {}
    latest, count, left, size = deque[dict[str, Any]](maxlen=most), 0, 0, 0
    for entry in entries:  # of a year's ledger memory would not hold all
        latest.append(entry)
        count += 1
        if entry["direction"] == "out":
            left, size = left + 1, size + entry["bytes"]
    for entry in reversed(latest):
        days.setdefault(entry["time"][:10], []).append(_moment(entry, names))
    return list(days.items()), count, f"{left} messages, {size:,} bytes"


def _moment(entry: dict[str, Any], names: dict[str, str]) -> Moment:
    study_hash = entry["study"] or ""
    out = entry["direction"] == "out"
    details = [
        f"changes to {name}" if out else name for name in dict.fromkeys(component_of(name) for name in entry["tensors"])
    ]
    numbers = [f"{name} {value:.4g}" for name, value in entry["metrics"].items()]
    details += numbers[:MOST_NUMBERS]
    if len(numbers) > MOST_NUMBERS:
        details.append(f"and {len(numbers) - MOST_NUMBERS} more numbers")
    if entry["epsilon"] is not None:
        details.append(f"epsilon {entry['epsilon']:.4g} after it")
    if entry.get("unwritten"):
        details.append(f"before it {entry['unwritten']} messages refused as too many")
    where = "" if entry["round"] is None else f", round {entry['round']}"
    return Moment(
        time=entry["time"][11:16],
        out=out,
        study=names.get(study_hash, study_hash[:12]),
        what=f"{entry['refusal'] or entry['task'] or entry['kind']}{where}, {entry['bytes']:,} bytes",
        details=tuple(details),
        refused=entry["refusal"] is not None,
    )


def _networks(proposal: Proposal) -> list[tuple[str, str, int, int, list[str]]]:
    """Return component, meaning, tensors, numbers, and the tensors' names."""
    return [
        (name, MEANINGS[name], len(shapes), sum(map(prod, shapes.values())), list(shapes))
        for name, shapes in proposal.tensors.items()
    ]
