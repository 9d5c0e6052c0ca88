"""A deployed study beside its baseline: two studies, one after the other, for a hospital approves what it trains.

The baseline's weights belong to the study that is compared with them, by their hash: nobody can exchange them later.
"""

import os
from pathlib import Path

import yaml

from common.baseline import against_baseline, baseline_of
from common.errors import RunError
from common.files import PUBLIC, write_atomically
from common.run_folder import RunFolder
from common.study import Study, load_study, read_study_of_run


def write_baseline(study_file: Path, out: Path) -> Study:
    """Write the baseline of a study as a study of the source hospitals, and return it. Raises StudyError, RunError."""
    return _written(baseline_of(load_study(study_file)), out)


def write_compared(study_file: Path, run: Path, out: Path) -> Study:
    """Write the study with the model of its baseline's run to compare with, and return it.

    Raises:
        StudyError: if a study cannot be read.
        RunError: if `run` is another study's or unfinished, or nothing can be written.
    """
    study, found = load_study(study_file), read_study_of_run(run)
    wanted, model = baseline_of(study), RunFolder(run).model
    if found.hash() != wanted.hash():
        raise RunError(
            f"expected the run of {wanted.name}, {wanted.hash()[:16]}, found one of {found.name}, {found.hash()[:16]}. "
            f"Write that study with `crossprobe study baseline {study_file} --out FILE`, run it, and give its run."
        )
    if not model.is_file():
        raise RunError(f"{run} has no model yet. Finish it with: crossprobe study run FILE --out {run} --resume")
    return _written(against_baseline(study, model), out)


def _written(study: Study, out: Path) -> Study:
    content = study.model_dump(mode="json")
    for weights in content["initial"].values():  # from the file's own folder, see `load_study`
        weights["file"] = os.path.relpath(weights["file"], out.resolve().parent)
    write_atomically(out, yaml.safe_dump(content, sort_keys=False).encode(), then="try again", mode=PUBLIC)
    return study
