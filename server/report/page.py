"""report.html: one self-contained page on a run, from the run's own files, finished or not."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from common.files import write_atomically
from common.metric_name import MEASURES, PREDICTORS
from common.run_folder import RunFolder
from common.study import Study, read_study_of_run
from common.version import software_version
from server import history
from server.history import RoundRecord
from server.report import csv_links, curves, spread, tables
from server.report.charts import Interval, axis_over, interval_chart
from server.report.conclusions import (
    RELEASED,
    average_sentence,
    conclusions,
    headline,
    labelled_sentence,
    score_sentence,
)
from server.report.dots import Pair, paired_chart
from server.report.drawn import Drawn, Example, PatientDice, kept
from server.report.environment import environment
from server.report.summary import summarise
from server.state import ServerState, load_state

TEMPLATE = "report.html.j2"

#: Reasons that the page lists; its CSV has all.
MOST_PROBLEMS = 50
#: What each predictor is, in one line.
GLOSSARY = {
    "baseline": "The reference that the study names: as a rule one branch, trained on the labelled sites alone "
    "with as many supervised steps.",
    "source_branch": "The branch that learns from labelled images first.",
    "target_branch": "The branch whose encoder learns from the unlabelled images.",
    "average": "The plain mean of both branches' probabilities.",
    "infusion": "The released model: both branches, weighted pixel by pixel by the infusion head.",
    "student": "The small, fast network that learned what the released model predicts; one pass, never mirrored.",
}


def render_report(run: Path) -> Path:
    """Write `report.html` into a run's folder, finished or not, and return its path.

    The same files give the same bytes. What a simulation drew of the images is in it, see `server.report.drawn`.

    Raises:
        RunError: if the folder holds no run, its checkpoint is damaged or the report cannot be written.
        StudyError: if its study is damaged.
    """
    write_atomically(RunFolder(run).report, report_page(run).encode())
    return RunFolder(run).report


def report_page(run: Path) -> str:
    """Return the page that `render_report` writes."""
    study = read_study_of_run(run)
    state = load_state(RunFolder(run).checkpoint, study.hash()) or ServerState(round=0, components={})
    records = history.read(run)
    summary = summarise(study, state, records) if state.round >= len(study.rounds()) else None
    by_role = sorted(state.participants.items(), key=lambda item: (item[1].role != "target", item[0]))
    state = replace(state, participants=dict(by_role))  # unlabelled sites first: they are what a study is for
    baseline = history.read(RunFolder(run).baseline.path)
    drawn = Drawn() if summary is None else kept(run)
    content = {
        "study": study,
        "hash": study.hash(),
        "resolved": yaml.safe_dump(json.loads(study.resolved()), sort_keys=False),
        "software": software_version(),
        "state": state,
        "summary": summary,
        "finished": summary is not None,
        "many": len(state.participants) > spread.MANY_SITES,
        "pictures": _by_site(drawn.pictures),
        "patient_charts": _patient_charts(drawn.patients),
    }
    content |= _results(study, state, records, summary)
    content |= _course(study, state, records, RunFolder(run).baseline.path, baseline)
    content |= _participation(state, records, baseline)
    return environment().get_template(TEMPLATE).render(content)


def _results(
    study: Study, state: ServerState, records: Sequence[RoundRecord], summary: dict[str, Any] | None
) -> dict[str, Any]:
    """Return what the evaluation says."""
    of_sites = conclusions(state.participants, summary, records) if summary else ()
    shown = _predictors(summary)
    head_trained = _head_trained(study, state)
    content: dict[str, Any] = {
        "headline": headline(of_sites) if summary else _progress(study, state),
        "conclusions": [conclusion for conclusion in of_sites if conclusion.role == "target"],
        "labelled_sentence": labelled_sentence(of_sites),
        "score_sentence": score_sentence(summary["label_free_score"] if summary else None),
        "average_sentence": average_sentence(summary, head_trained=head_trained, source_share=study.source_share)
        if summary and shown
        else "",
        "predictors": shown,
        "glossary": {name: GLOSSARY[name] for name in shown or PREDICTORS},
        "hd95_unit": "mm" if study.image.geometry == "spacing" else "mm or pixels",
        "empty_shares": _has_empty(summary),
    }
    if summary is None:
        return content
    return content | {
        "results_csv": csv_links.results(summary, shown),
        "ranked": spread.ranked(of_sites),
        "role_charts": spread.role_charts(summary["dice"], state.participants, shown),
        "spreads": {
            measure: spread.spreads(summary[measure], state.participants, shown, 1 if measure == "hd95" else 100)
            for measure in MEASURES
        },
        "dice_charts": _dice_charts(summary["dice"], shown, list(state.participants)),
    }


def _course(
    study: Study,
    state: ServerState,
    records: Sequence[RoundRecord],
    baseline_run: Path,
    baseline: Sequence[RoundRecord],
) -> dict[str, Any]:
    """Return how the training went, the baseline's beside it where the run has one."""
    rounds = curves.rounds(state, records)
    baseline_chart = (
        curves.baseline_chart(read_study_of_run(baseline_run), curves.rounds(state, baseline)) if baseline else None
    )
    return {
        "rounds": rounds,
        "rounds_csv": csv_links.rounds(rounds),
        "stages": curves.bands(study),
        "score_chart": curves.score_chart(study, state, rounds),
        "baseline_chart": baseline_chart,
        "loss_charts": curves.loss_charts(study, state, records),
        "released": next((r for r in rounds if r.round == state.released_round), None),
        "rolled_back": [record for record in records if record.rolled_back],
        "short": [record for record in records if not record.counted],
    }


def _participation(
    state: ServerState, records: Sequence[RoundRecord], baseline: Sequence[RoundRecord]
) -> dict[str, Any]:
    """Return who took part, for how long, and what travelled."""
    participants, problems = tables.participants(state, records), tables.problems(records)
    traffic = tables.traffic(records)
    return {
        "started": records[0].started.replace("T", " ")[:16] if records else None,
        "seconds": sum(record.seconds for record in records),
        "whole_seconds": tables.whole_time(records, baseline),
        "participants": participants,
        "presence": spread.presence(participants),
        "troubled": spread.troubled(participants),
        "participants_csv": csv_links.rows_of(participants),
        "problems": problems[:MOST_PROBLEMS],
        "problem_count": len(problems),
        "problems_csv": csv_links.rows_of(problems),
        "traffic": traffic,
        "traffic_csv": csv_links.rows_of(traffic),
        "baseline_traffic": tables.traffic(baseline),
        "unlisted": tables.unlisted(state, records),
    }


def _patient_charts(patients: Sequence[PatientDice]) -> list[tuple[str, str, int, Markup]]:
    """Return site, role, number of patients and one dot a patient, baseline beside method, all on one axis."""
    pairs = {
        own.site: [Pair(100 * b, 100 * m) for b, m in zip(own.dice["baseline"], own.dice[RELEASED], strict=True)]
        for own in patients
        if "baseline" in own.dice
    }
    axis = axis_over(
        [value for of_site in pairs.values() for pair in of_site for value in (pair.baseline, pair.method)]
    )
    ordered = sorted((own for own in patients if own.site in pairs), key=lambda own: (own.role != "target", own.site))
    return [
        (
            own.site,
            own.role,
            len(pairs[own.site]),
            paired_chart(pairs[own.site], axis, title=f"Dice in percent of each test patient at {own.site}"),
        )
        for own in ordered
    ]


def _head_trained(study: Study, state: ServerState) -> bool:
    """Return whether a round before the released one trained the infusion head: untrained, it is a fixed mean."""
    if "infusion_head" in study.initial:
        return True
    before = study.rounds()[: state.released_round or 0]
    return any("infusion_head" in task.trains for round_ in before if (task := round_.stage.source) is not None)


def _by_site(pictures: Sequence[Example]) -> list[tuple[str, list[Example]]]:
    """Return the examples of each site, unlabelled sites first."""
    ordered = sorted(pictures, key=lambda example: (example.role != "target", example.site))
    return [(site, list(group)) for site, group in groupby(ordered, key=lambda example: example.site)]


def _progress(study: Study, state: ServerState) -> str:
    every = study.rounds()
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
