"""What a method's last stage could win at most: the same stage with a target's true masks, cross-fitted by patient.

`python -m simulations.ablation.cross_fitted --help`. An oracle in the method's own form, from the first stages that an
ablation kept: in the last stage a target's pseudo-labels are replaced by masks of its test patients, of all folds but
one, and the fold is measured. A bound beside a table; it chooses nothing.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from clients.data.dataset import Dataset
from clients.data.site import Site
from clients.governance.policy import Policy
from clients.learning.evaluate import measure_patients
from clients.learning.training import TaskContext, perform
from clients.node.simulated import simulated_secret
from common.components import Role, Tensors
from common.files import write_atomically
from common.metrics import frame_dice
from common.networks import Networks
from common.stage import Round
from common.study import Study, load_study
from server.algorithm import begun
from server.state import ServerState
from simulations.ablation.comparison import difference
from simulations.ablation.stage_cache import StageCache
from simulations.simulate import hardware, open_sites

#: The released model without a head, and the first branch, which the last stage leaves as it was.
RELEASED, FIRST = "average", "source_branch"


def without_fold(site: Site, fold: set[str]) -> Site:
    """Return a target's site as a source whose training patients are the labelled test patients outside `fold`."""
    kept = [f for f in site.frames_of("test", labelled=True) if f.patient not in fold]
    frames = tuple(replace(frame, split="train") for frame in kept)
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


def main(arguments: Sequence[str]) -> Path:
    """Train and measure every fold, and write and return the file with means and intervals."""
    parser = argparse.ArgumentParser(prog="python -m simulations.ablation.cross_fitted", description=__doc__)
    parser.add_argument("study", type=Path, help="the method; its last stage is the one that gets masks")
    parser.add_argument("--source", type=Path, required=True, help="labelled site folder")
    parser.add_argument("--target", type=Path, required=True, help="site folder whose test patients have masks")
    parser.add_argument("--stages", type=Path, required=True, help="folder `stages` of an ablation, trained or not")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    asked = parser.parse_args(arguments)
    asked.out.parent.mkdir(parents=True, exist_ok=True)  # not after an hour
    torch.set_num_threads(1)
    study = load_study(asked.study).model_copy(update={"seed": asked.seed})
    cache = StageCache(study, open_sites([asked.source, asked.target], study), asked.stages)
    source, target = cache.sites
    state = cache.train(study.stages[:-1])
    patients = target.patients("test", labelled=True)
    found: dict[str, dict[str, float]] = {RELEASED: {}, FIRST: {}}
    for fold in range(asked.folds):
        held = set(patients[fold :: asked.folds])
        labelled = Dataset(without_fold(target, held), study)
        networks = Networks(study)
        networks.load(trained(study, state, {"source": cache.data[source.config.name], "target": labelled}))
        frames = tuple(frame for frame in target.frames if frame.patient in held)
        measured = measure_patients(
            networks,
            study,
            Dataset(replace(target, frames=frames), study),
            tuple(found),
            lambda p, y, _: frame_dice(p, y),
        )
        for row, own in measured.items():
            found[row] |= {patient: float(np.mean(values)) for patient, values in own.items()}
        print(f"fold {fold + 1} of {asked.folds}", file=sys.stderr)
    gain = difference([found[RELEASED]], [found[FIRST]], same_patients=True)
    content = {
        "command": shlex.join(["python", "-m", "simulations.ablation.cross_fitted", *arguments]),
        "study": asked.study.name,
        "seed": asked.seed,
        "folds": asked.folds,
        "hardware": hardware(),
        "dice": {row: float(np.mean(list(own.values()))) for row, own in found.items()},
        "difference": gain.as_json(),
    }
    write_atomically(asked.out, (json.dumps(content, indent=1) + "\n").encode())
    return asked.out


if __name__ == "__main__":
    print(main(sys.argv[1:]))
