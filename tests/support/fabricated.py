"""Runs as a server leaves them, made up in milliseconds, with any result, participant or problem."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from tiny import study as tiny_study

from common.components import Role
from common.metric_name import MEASURES
from common.run_folder import RunFolder
from common.study import Study
from server import history
from server.history import RoundRecord, SiteRecord
from server.state import Participant, ServerState, save_state

SECRET = "/archive/of-anna-meier"
SOURCE, TARGET = Participant("source", 120, True), Participant("target", 40, True)
#: When a fabricated run's rounds begin; each takes 12.5 s.
FIRST_ROUND, EVERY = datetime(2026, 11, 23, 3, 50, 11, tzinfo=UTC), timedelta(seconds=15)
PAIR = {"north": SOURCE, "east": TARGET}


def study_with_baseline() -> Study:
    return tiny_study(initial={"baseline": {"file": f"{SECRET}/baseline.safetensors", "sha256": "0" * 64}})


def evaluation(difference: tuple[float, float, float] | None, *, dice: float = 0.8) -> dict[str, float]:
    """What a site answers to `evaluate`; `difference` is (mean, low, high) of every predictor, None: no baseline.

    The means of Dice and the other shares are `dice`, the baseline's lower by the difference.
    """
    metrics: dict[str, float] = {}
    for predictor in study_with_baseline().predictors[0 if difference else 1 :]:
        metrics |= {f"{predictor}/empty_truth_share": 0.0, f"{predictor}/empty_prediction_share": 0.0}
        for measure in MEASURES:
            behind = difference[0] if difference and predictor == "baseline" else 0.0
            mean = 4.2 if measure == "hd95" else min(1.0, dice - behind)
            numbers = {"mean": mean, "low": mean - 0.04, "high": mean + 0.03, "patients": 36.0}
            if difference and predictor != "baseline":
                numbers |= dict(zip(("difference", "difference_low", "difference_high"), difference, strict=True))
            metrics |= {f"{predictor}/{measure}/{name}": value for name, value in numbers.items()}
    return metrics


def entry(role: Role, task: str, index: int, evaluated: dict[str, float]) -> SiteRecord:
    known = {
        "supervise": {"loss": 1.4 - 0.1 * index, "val_dice": 0.5 + 0.05 * index},
        "self_supervise": {"loss": 2.0 - 0.2 * index},
        "self_train": {"loss": 1.0, "score": 0.6 + 0.01 * index},
        "infuse": {"loss": 0.9, "val_dice": 0.7},
        "score": {"score": 0.6 + 0.01 * index} if role == "target" else {"val_dice": 0.71},
        "evaluate": evaluated,
    }
    return SiteRecord(
        role, task, "ok", metrics=known[task], bytes_to=2_000_000, bytes_from=1_000_000, seconds=3.0 + index
    )


def fabricate(
    run: Path,
    participants: Mapping[str, Participant] = PAIR,
    evaluated: Mapping[str, dict[str, float]] | None = None,
    *,
    study: Study | None = None,
    done: int | None = None,
    changes: Mapping[int, Mapping[str, Any]] | None = None,
) -> Path:
    """Write a run as the server leaves it.

    Args:
        evaluated: site -> what it answers to `evaluate`.
        done: finished rounds; None: all.
        changes: round -> fields of its record that replace the fabricated ones.
    """
    study = study or study_with_baseline()
    records = []
    run.mkdir(parents=True)
    content = {"hash": study.hash(), "study": json.loads(study.model_dump_json())}
    RunFolder(run).study.write_text(yaml.safe_dump(content, sort_keys=False))
    for round_ in study.rounds()[:done]:
        sites = {}
        for site, participant in participants.items():
            task = round_.stage.task_of(participant.role)
            if task is not None and (task.task != "evaluate" or participant.labelled_test):
                own = entry(participant.role, task.task, round_.index, (evaluated or {}).get(site, {}))
                told = study.metrics_of(round_.stage, participant.role)
                sites[site] = replace(own, metrics={name: x for name, x in own.metrics.items() if name in told})
        scores = [own.metrics["score"] for own in sites.values() if "score" in own.metrics]
        record = RoundRecord(
            round_.index,
            round_.stage.name,
            (FIRST_ROUND + round_.index * EVERY).isoformat(),
            12.5,
            sites,
            score=scores[0] if scores else None,
        )
        record = replace(record, **(changes or {}).get(round_.index, {}))
        history.append(run, record)
        records.append(record)
    every = [own for record in records for own in record.sites.values()]
    state = ServerState(
        round=len(records),
        components={},
        released_round=3 if len(records) > 3 else None,
        best_score=0.63 if len(records) > 3 else None,
        best_val_dice={"north": 0.65} if len(records) > 3 else {},
        participants=participants,
        bytes_to_sites=sum(own.bytes_to for own in every),
        bytes_from_sites=sum(own.bytes_from for own in every),
    )
    save_state(RunFolder(run).checkpoint, state, study.hash())
    return run
