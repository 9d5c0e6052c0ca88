"""What a method's last stage could win at most: the same stage with a target's true masks, cross-fitted by patient.

`python -m simulations.ablation.cross_fitted --help`. An oracle in the method's own form, from the stages that an
ablation kept: in the last stage a target's pseudo-labels are replaced by masks of its test patients, of all folds but
one, and the fold is measured. Its distance to the strongest baseline is the gap, of which the method closes a share. A
bound beside a table; it chooses nothing.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from clients.data.dataset import Dataset
from clients.data.site import Site
from clients.governance.policy import Policy
from clients.learning.evaluate import measure_patients
from clients.learning.training import TaskContext, perform
from common.components import Role, Tensors
from common.metrics import frame_dice
from common.networks import Networks
from common.options import Seed, StudyFile, only
from common.simulated import simulated_secret
from common.stage import Round
from common.study import Study, load_study
from server.algorithm import begun
from server.state import ServerState
from simulations.ablation import rivals  # noqa: F401  # an earlier form of the method has a task of theirs
from simulations.ablation.comparison import DRAWS, difference
from simulations.ablation.measuring import measure
from simulations.ablation.stage_cache import StageCache
from simulations.ablation.tally import BASELINE
from simulations.ablation.variants import chosen
from simulations.publication import origin, write_figures
from simulations.simulate import open_sites

#: The released model, and the first branch, which the last stage leaves as it was.
FUSED, FIRST = "infusion", "source_branch"
#: How the rows are named where they are written.
ORACLE, METHOD, FIRST_BRANCH = "oracle", "method", "first branch"


def without_fold(site: Site, fold: set[str], most: int | None = None) -> Site:
    """Return a target's site as a source whose training patients are the labelled test patients outside `fold`.

    Args:
        most: patients that are taken, by name in order; None: all.
    """
    kept = {patient for patient in site.patients("test", labelled=True) if patient not in fold}
    taken = sorted(kept)[:most]
    frames = tuple(replace(f, split="train") for f in site.frames_of("test", labelled=True) if f.patient in taken)
    return replace(site, config=site.config.model_copy(update={"role": "source"}), frames=frames)


def trained(study: Study, state: ServerState, data: dict[Role, Dataset]) -> Tensors:
    """Return the components after the study's last stage, both roles with the source's task and half of the weight."""
    stage, networks, policy = study.stages[-1], Networks(study), Policy()
    assert stage.source is not None
    components = begun(state, Round(0, stage, 0)).components
    for step in range(stage.rounds):
        results = []
        for role, own in data.items():
            networks.load(components)
            secret = simulated_secret(study, role)
            perform(TaskContext(study, Round(step, stage, step), stage.source, networks, own, policy, secret))
            results.append(networks.export(stage.source.trains))
        components = components | {name: (x + results[1][name]) / 2 for name, x in results[0].items()}
    return components


def closed(method: Mapping[str, float], baseline: Mapping[str, float], oracle: Mapping[str, float]) -> dict[str, float]:
    """Return the share of the gap that a method closes, with its 95 % bootstrap interval over patients.

    Args:
        method, baseline, oracle: patient -> Dice.
    """
    patients = sorted(baseline)
    won = np.array([method[patient] - baseline[patient] for patient in patients])
    gap = np.array([oracle[patient] - baseline[patient] for patient in patients])
    drawn = np.random.default_rng(0).integers(0, len(patients), (DRAWS, len(patients)))
    low, high = np.quantile(won[drawn].mean(1) / gap[drawn].mean(1), [0.025, 0.975])
    return {"mean": float(won.mean() / gap.mean()), "low": float(low), "high": float(high)}


def main(
    study_file: StudyFile,
    source: Annotated[Path, typer.Option(metavar="DIR", help="labelled site folder")],
    target: Annotated[Path, typer.Option(metavar="DIR", help="site folder whose test patients have masks")],
    stages: Annotated[Path, typer.Option(metavar="DIR", help="folder `stages` of an ablation, trained or not")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON file to write")],
    seed: Seed = 0,
    folds: Annotated[int, typer.Option(min=2)] = 4,
    patients_taught: Annotated[
        int | None,
        typer.Option("--patients", min=1, help="with masks of so many: what the method is worth in labelled patients"),
    ] = None,
) -> None:
    """Train the last stage of STUDY with true masks and write what it wins, means and intervals over all folds.

    Beside it stand the strongest baseline and the method itself, trained where the ablation has not.
    """
    out.parent.mkdir(parents=True, exist_ok=True)  # not after an hour
    torch.set_num_threads(1)
    study = load_study(study_file).model_copy(update={"seed": seed})
    cache = StageCache(study, open_sites([source, target], study), stages)
    labelled, unlabelled = cache.sites
    state = cache.train(study.stages[:-1])
    patients = unlabelled.patients("test", labelled=True)
    oracle: dict[str, dict[str, float]] = {FUSED: {}, FIRST: {}}
    for fold in range(folds):
        held = set(patients[fold::folds])
        taught = Dataset(without_fold(unlabelled, held, patients_taught), study)
        networks = Networks(study)
        networks.load(trained(study, state, {"source": cache.data[labelled.config.name], "target": taught}))
        frames = tuple(frame for frame in unlabelled.frames if frame.patient in held)
        measured = measure_patients(
            networks,
            study,
            Dataset(replace(unlabelled, frames=frames), study),
            tuple(oracle),
            lambda p, y, _: frame_dice(p, y),
        )
        for row, own in measured.items():
            oracle[row] |= {patient: float(np.mean(values)) for patient, values in own.items()}
        print(f"fold {fold + 1} of {folds}", file=sys.stderr)
    found = {ORACLE: oracle[FUSED], FIRST_BRANCH: oracle[FIRST]}
    roles: dict[str, Role] = {labelled.config.name: "source", unlabelled.config.name: "target"}
    for row, variant in zip((BASELINE, METHOD), chosen(("baseline", "all")), strict=True):
        rows = measure(cache, variant, variant.stages(study), False, roles)["sites"][unlabelled.config.name]["rows"]
        found[row] = list(rows.values())[-1]  # of the method, the released model
    content = {
        **origin("simulations.ablation.cross_fitted", seed),
        "pair": [labelled.config.name, unlabelled.config.name],
        "study": study_file.name,
        "folds": folds,
        "patients": min(patients_taught or len(patients), len(patients) - -(-len(patients) // folds)),
        "dice": {row: float(np.mean(list(own.values()))) for row, own in found.items()},
        "difference": difference([found[ORACLE]], [found[FIRST_BRANCH]], same_patients=True).as_json(),
        "gap": difference([found[ORACLE]], [found[BASELINE]], same_patients=True).as_json(),
        "less_method": difference([found[ORACLE]], [found[METHOD]], same_patients=True).as_json(),
        "closed": closed(found[METHOD], found[BASELINE], found[ORACLE]),
    }
    write_figures(out, content)


if __name__ == "__main__":
    only(
        main,
        "python -m simulations.ablation.cross_fitted configs/self-training.yaml --source runs/busbra/ge-logiq7 "
        "--target runs/busbra/toshiba-aplio300 --stages runs/oracle --out oracle.json",
    )
