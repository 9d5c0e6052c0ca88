"""The strongest model of a labelled probe alone, chosen where labels are.

`python -m simulations.ablation.source_only --help`. One supervised training on a source's `train` patients, measured
along its way on patients it does not see: the source's own `val` and `calibrate` patients, and all of other labelled
scanners (leave one scanner out). Weights as they are and averaged, predictions whole and without small parts. A
target's labels have no part in it.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer
from torch import Generator

from clients.data.dataset import Dataset, Sample, by_patient
from clients.data.frames import Frame
from clients.data.site import load_site
from clients.learning.scoring import sample_dice
from common.artefact_settings import Artefact
from common.components import Split
from common.geometry import standardise
from common.infusion import without_small_parts
from common.networks import Branch, initial_networks
from common.options import Seed, StudyFile, only
from common.seeds import derive_seed
from common.study import Study, load_study
from simulations.ablation.one_branch import train_branch
from simulations.publication import origin, write_figures

#: Of the largest part, the share below which a part is small.
SHARE = 0.2


def held_out(data: Dataset, *, own: bool) -> dict[str, list[Frame]]:
    """Return patient -> frames to measure on: all of the source's held-out patients, one of each other patient."""
    splits: tuple[Split, ...] = ("val", "calibrate") if own else ("train", "val", "calibrate", "test")
    frames = by_patient([frame for split in splits for frame in data.site.frames_of(split, labelled=True)])
    return frames if own else {patient: [views[len(views) // 2]] for patient, views in frames.items()}


def dice(branch: Branch, data: Dataset, patients: Mapping[str, Sequence[Frame]]) -> tuple[float, float]:
    """Return the mean Dice over patients, in [0, 1], of whole predictions and of those without small parts.

    Images must fit one tile (`geometry: letterbox`).
    """
    whole, cleaned = [], []
    for frames in patients.values():
        own = []
        for frame in frames:
            sample = data.sample(frame)
            x = standardise(sample.image[None, None], sample.valid[None, None])
            with torch.no_grad():
                plain, mirrored = torch.sigmoid(branch(torch.cat([x, x.flip(-1)]))).chunk(2)
            p = ((plain + mirrored.flip(-1)) / 2)[0, 0] * sample.valid  # as `common.infusion.predict_maps` cuts it
            own.append([sample_dice(q, sample) for q in (p, without_small_parts(p, SHARE))])
        both = np.mean(own, axis=0)
        whole.append(both[0])
        cleaned.append(both[1])
    return float(np.mean(whole)), float(np.mean(cleaned))


def course(
    study: Study, source: Path, others: Sequence[Path], kinds: Mapping[Artefact, float], *, steps: int, every: int
) -> list[dict[str, Any]]:
    """Train and return a row for every `every` steps: step, site, weights, Dice, Dice without small parts."""
    data = {folder.name: Dataset(load_site(folder), study) for folder in (source, *others)}
    measured = {name: held_out(own, own=name == source.name) for name, own in data.items()}
    branch = initial_networks(study).source_branch.requires_grad_(True)
    average = copy.deepcopy(branch).requires_grad_(False)
    generator = torch.Generator().manual_seed(derive_seed(b"dev", study.seed))

    def draw(generator: Generator) -> list[Sample]:
        frames = data[source.name].draw("train", study.batch_size, generator)
        return [data[source.name].labelled(frame) for frame in frames]

    rows = []
    for step in train_branch(branch, average, study, draw, generator, steps=steps, artefacts=kinds):
        if step % every == 0:
            for weights, model in (("last", branch), ("averaged", average)):
                for name, patients in measured.items():
                    whole, cleaned = dice(model, data[name], patients)
                    place = {"step": step, "site": name, "weights": weights, "patients": len(patients)}
                    rows.append(place | {"dice": whole, "without_small_parts": cleaned})
    return rows


def main(
    study_file: StudyFile,
    source: Annotated[Path, typer.Option(metavar="DIR", help="site folder to train on")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON file to write")],
    other: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="labelled site folder; repeat")] = None,
    artefacts: Annotated[float, typer.Option(min=0, max=1, help="strength of the whole bank")] = 0.0,
    steps: Annotated[int, typer.Option(min=1)] = 1600,
    every: Annotated[int, typer.Option(min=1, help="steps between measurements")] = 400,
    seed: Seed = 0,
) -> None:
    """Train on one labelled probe alone and write its Dice along the way.

    Of STUDY only grid, network, augmentation and batch size count.
    """
    torch.set_num_threads(1)
    study = load_study(study_file).model_copy(update={"seed": seed})
    kinds: dict[Artefact, float] = dict.fromkeys(get_args(Artefact), artefacts) if artefacts else {}
    begun = time.process_time()
    rows = course(study, source, other or (), kinds, steps=steps, every=every)
    found = {**origin("simulations.ablation.source_only", seed), "artefacts": artefacts}
    found |= {"cpu_minutes": round((time.process_time() - begun) / 60, 1), "rows": rows}
    write_figures(out, found)


if __name__ == "__main__":
    only(
        main,
        "python -m simulations.ablation.source_only configs/busbra.yaml --source runs/busbra/ge-logiq7 "
        "--other runs/busbra/ge-logiq5 --out docs/results/source-only/plain.json",
    )
