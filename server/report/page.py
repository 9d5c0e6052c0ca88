"""report.html: one self-contained page on a run, from the run's own files, finished or not."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.files import write_atomically
from common.metric_name import MEASURES, PREDICTORS
from common.run_folder import RunFolder
from common.study import Study, read_study_of_run
from server import history
from server.history import RoundRecord
from server.report import curves, tables
from server.report.charts import Interval, axis_over, interval_chart
from server.report.conclusions import conclusions, headline, labelled_sentence, points, score_sentence
from server.report.summary import summarise
from server.state import ServerState, load_state

TEMPLATE = "report.html.j2"

ROLE_WORDS = {"source": "source, labelled", "target": "target, unlabelled"}
#: What each predictor is, in one line.
GLOSSARY = {
    "baseline": "The reference that the study names: as a rule one branch, trained on the labelled sites alone "
    "with as many supervised steps.",
    "source_branch": "The branch that learns from labelled images first.",
    "target_branch": "The branch whose encoder learns from the unlabelled images.",
    "average": "The plain mean of both branches' probabilities.",
    "infusion": "The released model: both branches, weighted pixel by pixel by the infusion head.",
}


@dataclass(frozen=True)
class Example:
    """Pictures of one test image.

    Attributes:
        label: which image it is, without a patient's identifier or a file's name.
        dice: predictor -> Dice in [0, 1]; empty where the image has no truth.
        panels: (caption, PNG bytes) in the order to show.
    """

    site: str
    role: str
    label: str
    dice: dict[str, float]
    panels: list[tuple[str, bytes]]


def render_report(run: Path, pictures: Sequence[Example] = ()) -> Path:
    """Write `report.html` into a run's folder and return its path. The same files give the same bytes.

    Args:
        run: folder of a run, finished or not.
        pictures: examples to show, where the caller may read the images.

    Raises:
        RunError: if the folder holds no run, its checkpoint is damaged or the report cannot be written.
        StudyError: if its study is damaged.
    """
    study = read_study_of_run(run)
    state = load_state(RunFolder(run).checkpoint, study.hash()) or ServerState(round=0, components={})
    by_role = sorted(state.participants.items(), key=lambda item: (item[1].role != "target", item[0]))
    state = replace(state, participants=dict(by_role))  # unlabelled sites first: they are what a study is for
    records = history.read(run)
    finished = state.round >= len(list(study.rounds()))
    summary = summarise(run) if finished else None
    page = _environment().get_template(TEMPLATE).render(_content(study, state, records, summary, pictures))
    write_atomically(RunFolder(run).report, page.encode())
    return RunFolder(run).report


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda share: f"{100 * share:.1f}",
        "points": points,
        "words": lambda name: name.replace("_", " "),
        "megabytes": lambda count: f"{count / 1e6:,.2f}",
        "duration": _duration,
        "base64": lambda content: base64.b64encode(content).decode(),
    }
    return environment


def _duration(seconds: float) -> str:
    """Return a time in the unit that suits it: `42 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _content(
    study: Study,
    state: ServerState,
    records: Sequence[RoundRecord],
    summary: dict[str, Any] | None,
    pictures: Sequence[Example],
) -> dict[str, Any]:
    """Return all that the template shows."""
    of_sites = conclusions(state.participants, summary, records) if summary else ()
    shown = _predictors(summary)
    rounds = curves.rounds(state, records)
    return {
        "roles": ROLE_WORDS,
        "study": study,
        "hash": study.hash(),
        "resolved": yaml.safe_dump(json.loads(study.resolved()), sort_keys=False),
        "software": version("crossprobe"),
        "started": records[0].started.replace("T", " ")[:16] if records else None,
        "seconds": sum(record.seconds for record in records),
        "state": state,
        "finished": summary is not None,
        "headline": headline(of_sites) if summary else _progress(study, state),
        "conclusions": [conclusion for conclusion in of_sites if conclusion.role == "target"],
        "labelled_sentence": labelled_sentence(of_sites),
        "summary": summary,
        "predictors": shown,
        "glossary": {name: GLOSSARY[name] for name in shown or PREDICTORS},
        "dice_charts": _dice_charts(summary["dice"], shown, list(state.participants)) if summary else {},
        "hd95_unit": "mm" if study.image.geometry == "spacing" else "mm or pixels",
        "empty_shares": _has_empty(summary),
        "rounds": rounds,
        "released_score": next((r.score for r in rounds if r.round == state.released_round), None),
        "head_trained": _head_trained(study, state),
        "stages": curves.bands(study),
        "score_chart": curves.score_chart(study, state, records),
        "loss_charts": curves.loss_charts(study, state, records),
        "score_sentence": score_sentence(summary["label_free_score"] if summary else None),
        "participants": tables.participants(state, records),
        "problems": tables.problems(records),
        "rolled_back": [record for record in records if record.rolled_back],
        "short": [record for record in records if not record.counted],
        "traffic": tables.traffic(records),
        "unlisted": tables.unlisted(state, records),
        "pictures": _by_site(pictures),
    }


def _head_trained(study: Study, state: ServerState) -> bool:
    """Return whether a round before the released one trained the infusion head: untrained, it is the average."""
    before = list(study.rounds())[: state.released_round or 0]
    return any("infusion_head" in task.trains for round_ in before if (task := round_.stage.source) is not None)


def _by_site(pictures: Sequence[Example]) -> list[tuple[str, list[Example]]]:
    """Return the examples of each site, unlabelled sites first."""
    ordered = sorted(pictures, key=lambda example: (example.role != "target", example.site))
    return [(site, list(group)) for site, group in groupby(ordered, key=lambda example: example.site)]


def _progress(study: Study, state: ServerState) -> str:
    every = list(study.rounds())
    return (
        f"Unfinished: {state.round} of {len(every)} rounds are done, the next is in stage "
        f"{every[state.round].stage.name}. Not validated: test patients are evaluated after the last round."
    )


def _predictors(summary: dict[str, Any] | None) -> list[str]:
    """Return the predictors that any site reports a measure of, in the contract's order."""
    if summary is None:
        return []
    shown = {name for measure in MEASURES for by_predictor in summary[measure].values() for name in by_predictor}
    return [name for name in PREDICTORS if name in shown]


def _has_empty(summary: dict[str, Any] | None) -> bool | None:
    """Return whether a frame had an empty truth or prediction, or None where no site says so."""
    shares = [share for site in (summary["empty"].values() if summary else ()) for share in site.values()]
    return any(share["truth"] or share["prediction"] for share in shares) if shares else None


def _dice_charts(
    matrix: Mapping[str, Mapping[str, Any]], predictors: Sequence[str], sites: Sequence[str]
) -> dict[str, Any]:
    """Return one chart for each of `sites` that has results, Dice in percent, all on one axis."""
    axis = axis_over([100 * bound for cells in matrix.values() for cell in cells.values() for bound in cell["ci95"]])
    charts = {}
    for site in sites:
        cells = matrix.get(site)
        if not cells:
            continue
        rows = [
            Interval(name.replace("_", " "), name, 100 * cells[name]["mean"], *(100 * b for b in cells[name]["ci95"]))
            for name in predictors
            if name in cells
        ]
        reference = 100 * cells["baseline"]["mean"] if "baseline" in cells else None
        title = f"Dice in percent at {site}, with 95 % intervals"
        charts[site] = interval_chart(rows, axis, title=title, reference=reference)
    return charts
