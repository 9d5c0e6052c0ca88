"""The baseline of a study: what its labelled sites alone come to, with the same engine."""

import hashlib
from pathlib import Path

from common.components import HALVES
from common.errors import StudyError
from common.names import LONGEST_NAME
from common.stage import Stage
from common.study import Study
from common.study_settings import InitialWeights
from common.tasks import Supervise

#: What a baseline's name ends in.
SUFFIX = "-baseline"


def baseline_of(study: Study, *, rounds: int = 10) -> Study:
    """Return the baseline study: supervised rounds on the sources alone, with the same engine.

    Same network, augmentation, learning rate, seed and number of supervised steps as `study`, all of
    them spent on one branch. Where a branch of the study begins as a copy of the other one, the baseline has the
    study's own supervised stages, so that from the copy on they differ by the targets alone.
    """
    supervised = [(stage, stage.source) for stage in study.stages if isinstance(stage.source, Supervise)]
    if not supervised:
        raise StudyError("a study without a `supervise` task has no baseline; give a source stage one")
    trains = HALVES["source_branch"]
    if any(stage.begin for stage in study.stages):
        stages = [
            Stage(name=stage.name, rounds=stage.rounds, source=task.model_copy(update={"trains": trains}))
            for stage, task in supervised
        ]
    else:
        # no more rounds than the study supervises in: a short study's steps, spread over ten, would be too few for one
        rounds = min(rounds, sum(stage.rounds for stage, _ in supervised))
        task = supervised[0][1].model_copy(
            update={"trains": trains, "steps": -(-study.supervised_steps() // rounds)},
        )
        stages = [Stage(name="baseline", rounds=rounds, source=task)]
    name = f"{study.name[: LONGEST_NAME - len(SUFFIX)]}{SUFFIX}"
    return study.model_copy(update={"name": name, "stages": tuple(stages), "initial": {}, "student": None})


def against_baseline(study: Study, model: Path) -> Study:
    """Return the study with the weights of its baseline's run for `evaluate` to compare with. Raises OSError."""
    weights = InitialWeights(file=model.resolve(), sha256=hashlib.sha256(model.read_bytes()).hexdigest())
    return study.model_copy(update={"initial": {**study.initial, "baseline": weights}})
