"""summary.json: what a run found, for machines; made from the run's own history and checkpoint."""

import json
from pathlib import Path
from typing import Any

from common.errors import RunError
from common.files import write_atomically
from common.metric_name import MEASURES, PREDICTORS, MetricName
from common.run_folder import RunFolder
from common.study import Study, read_study_of_run
from server import history
from server.algorithm import weighted
from server.history import RoundRecord
from server.state import ServerState, load_state

#: Rounds with both numbers that a rank correlation needs before it says anything.
MIN_SCORED_ROUNDS = 4
#: What only the command knows that made the run: its own words, machine, and the time of it all.
EXTRAS = ("wall_s", "command", "hardware", "threads", "privacy")


def summarise(study: Study, state: ServerState, records: list[RoundRecord]) -> dict[str, Any]:
    """Return the summary of a finished run, from its last state and its history.

    `dice` and the other measures: site -> predictor -> {mean, ci95, patients}; in [0, 1], HD95 in mm
    where the site has spacing, else in pixels. `difference_to_baseline`: paired by patient. `empty`: shares of test
    frames. A site that may not show a number (too few patients) is missing from them, not zero.
    """
    evaluated = {
        site: entry.metrics
        for record in records
        if record.stage == "evaluate" and record.counted
        for site, entry in record.sites.items()
        if entry.status == "ok" and entry.metrics
    }
    return {
        "study": study.name,
        "hash": study.hash(),
        "seed": study.seed,
        "wall_s": round(sum(record.seconds for record in records), 1),
        "roles": {site: participant.role for site, participant in state.participants.items()},
        "patients": {site: participant.patients for site, participant in state.participants.items()},
        **{measure: _matrix(evaluated, measure) for measure in MEASURES},
        "difference_to_baseline": _differences(evaluated, "dice"),
        "empty": _empty(evaluated),
        "bytes": {"to_sites": state.bytes_to_sites, "from_sites": state.bytes_from_sites},
        "rounds": sum(record.counted for record in records),
        "released_round": state.released_round,
        "label_free_score": _score(state, records),
        "problems": _problems(records),
    }


def summary_of(run: Path) -> dict[str, Any]:
    """Return `summarise` of a run's folder.

    Raises:
        RunError: if the folder holds no run, or an unfinished one.
    """
    study = read_study_of_run(run)
    state = load_state(RunFolder(run).checkpoint, study.hash())
    if state is None or state.round < len(study.rounds()):
        raise RunError(f"{run} holds no finished run. Continue it with --resume.")
    return summarise(study, state, history.read(run))


def write_summary(run: Path, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write summary.json into a finished run's folder and return its content.

    Args:
        extra: what the run's own files do not hold, `EXTRAS`; None: as an earlier summary of this run has it.
    """
    content = summary_of(run)
    content |= _extras(RunFolder(run).summary, content["hash"]) if extra is None else extra
    write_atomically(RunFolder(run).summary, (json.dumps(content, indent=1) + "\n").encode())
    return content


def told(run: RunFolder) -> bool:
    """Whether a run was told of to its end: its summary has what the run's own files do not hold."""
    try:
        return "command" in json.loads(run.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _extras(summary: Path, study_hash: str) -> dict[str, Any]:
    try:
        before = json.loads(summary.read_text(encoding="utf-8"))
        return {key: before[key] for key in EXTRAS if key in before} if before["hash"] == study_hash else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _number(predictor: str, measure: str, statistic: str = "") -> str:
    return str(MetricName(predictor, measure, statistic))


def _matrix(evaluated: dict[str, dict[str, float]], measure: str) -> dict[str, dict[str, Any]]:
    return {
        site: {
            p: {
                "mean": m[_number(p, measure, "mean")],
                "ci95": [m[_number(p, measure, "low")], m[_number(p, measure, "high")]],
                "patients": int(m[_number(p, measure, "patients")]),
            }
            for p in PREDICTORS
            # a site's policy may allow the mean and not the rest; half an entry would mislead
            if all(_number(p, measure, part) in m for part in ("mean", "low", "high", "patients"))
        }
        for site, m in evaluated.items()
    }


def _differences(evaluated: dict[str, dict[str, float]], measure: str) -> dict[str, dict[str, Any]]:
    return {
        site: {
            p: {
                "mean": m[_number(p, measure, "difference")],
                "ci95": [m[_number(p, measure, "difference_low")], m[_number(p, measure, "difference_high")]],
            }
            for p in PREDICTORS
            if all(_number(p, measure, part) in m for part in ("difference", "difference_low", "difference_high"))
        }
        for site, m in evaluated.items()
    }


def _empty(evaluated: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    return {
        site: {
            p: {"truth": m[_number(p, "empty_truth_share")], "prediction": m[_number(p, "empty_prediction_share")]}
            for p in PREDICTORS
            if _number(p, "empty_truth_share") in m and _number(p, "empty_prediction_share") in m
        }
        for site, m in evaluated.items()
    }


def _score(state: ServerState, records: list[RoundRecord]) -> dict[str, Any]:
    """Return how the label-free score went and how it relates to Dice on the sources' validation patients."""
    rounds: list[dict[str, Any]] = []
    pairs: list[tuple[float, float]] = []
    for record in records:
        if record.score is None or not record.counted:
            continue
        dice = weighted(state.participants, {site: own.metrics for site, own in record.sites.items()}, "val_dice")
        if dice is not None:
            pairs.append((record.score, dice))
        rounds.append({"round": record.round, "score": record.score, "source_val_dice": dice})
    correlation = _rank_correlation(pairs) if len(pairs) >= MIN_SCORED_ROUNDS else None
    return {"rounds": rounds, "best": state.best_score, "rank_correlation_with_source_val_dice": correlation}


def _rank_correlation(pairs: list[tuple[float, float]]) -> float | None:
    """Return Spearman's rho of the pairs, or None where one side is constant."""
    from scipy.stats import spearmanr

    left, right = zip(*pairs, strict=True)
    if len(set(left)) == 1 or len(set(right)) == 1:
        return None
    return float(spearmanr(left, right).statistic)


def _problems(records: list[RoundRecord]) -> list[dict[str, Any]]:
    """Return every reply that did not count, and every round that was undone."""
    found: list[dict[str, Any]] = []
    for record in records:
        found += [
            {"round": record.round, "site": site, "status": s.status, "detail": s.detail}
            for site, s in record.sites.items()
            if s.status != "ok"
        ]
        if record.rolled_back:
            found.append(
                {
                    "round": record.round,
                    "site": None,
                    "status": "rolled-back",
                    "detail": "score or validation Dice fell",
                }
            )
    return found
