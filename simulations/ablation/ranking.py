"""Which score tells good models from bad ones where no label is: candidates ranked by each, and by their true Dice.

`python -m simulations.ablation.ranking --help`. A pool of models of one study's network, some of them failures planted
on purpose (`simulations.ablation.candidates`), under every score that needs no label of the target
(`simulations.ablation.label_free`). The target's test masks measure the scores (`simulations.ablation.verdict`); they
have no part in any of them.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from clients.data.dataset import Dataset, Sample, by_patient
from clients.data.frames import Frame
from clients.data.site import load_site
from clients.learning.scoring import (
    FOREGROUND_TOLERANCE,
    SCORE_STRENGTH,
    Views,
    label_free_score,
    mean_area,
    sample_dice,
)
from common.augment import device_shift
from common.network_settings import BasicUNet
from common.networks import Networks, initial_networks
from common.options import Seed, StudyFile, only
from common.seeds import derive_seed
from common.study import Study, load_study
from simulations.ablation.candidates import (
    REFERENCE,
    Candidate,
    Weights,
    adapted,
    labelled_by,
    learn,
    predict,
    supervised,
)
from simulations.ablation.label_free import agreement, certainty, consistency, information, prior_match
from simulations.ablation.verdict import INFORMATION, SOURCE, TODAYS
from simulations.publication import origin, write_figures

#: Target patients behind a score.
PATIENTS = 32
#: Share of feature channels that `consistency` drops.
DROPPED = 0.2
#: Reverse validation's student, which starts from nothing: a network of a quarter of a branch's size, steps and rate.
STUDENT, STUDENT_STEPS, STUDENT_RATE = BasicUNet(features=(8, 8, 16, 32, 32, 8)), 80, 2e-3


def middle_frames(frames: Sequence[Frame]) -> list[Frame]:
    """Return the middle frame of each patient."""
    return [own[len(own) // 2] for own in by_patient(list(frames)).values()]


def mean_dice(networks: Networks, study: Study, weights: Weights, data: Dataset, frames: Sequence[Frame]) -> float:
    """Return a model's mean Dice over frames, one a patient, in [0, 1], on their images' own pixels."""
    samples = [data.sample(frame) for frame in frames]
    maps = predict(networks, study, weights, samples)
    return mean(sample_dice(p, sample) for p, sample in zip(maps, samples, strict=True))


def dropped_out(networks: Networks, study: Study, weights: Weights, samples: Sequence[Sample]) -> list[Tensor]:
    """Return a model's maps with whole channels of its encoder's features dropped, the same for every model."""
    generator = torch.Generator().manual_seed(study.seed)

    def drop(*call: Any) -> list[Tensor]:
        features: list[Tensor] = call[-1]
        kept = [torch.rand(*x.shape[:2], 1, 1, generator=generator) >= DROPPED for x in features]
        return [x * keep / (1 - DROPPED) for x, keep in zip(features, kept, strict=True)]

    handle = networks.baseline.encoder.register_forward_hook(drop)
    try:
        return predict(networks, study, weights, samples)
    finally:
        handle.remove()


def reverse_validation(
    study: Study,
    samples: Sequence[Sample],
    maps: Sequence[Tensor],
    source: Dataset,
    frames: Sequence[Frame],
) -> float:
    """Return the Dice on labelled source patients of a fresh student that learnt a model's masks of the target.

    Zhong et al. 2010 (ECML PKDD); the circular validation of DASVM, Bruzzone and Marconcini 2010 (IEEE TPAMI); used by
    Ganin et al. 2016, arXiv 1505.07818. First weights and draws are the same for all models. Between sites the
    student's weights would travel from target to source, and one number back.
    """
    small = study.model_copy(update={"network": STUDENT})
    generator = torch.Generator().manual_seed(derive_seed(b"reverse", study.seed))
    branch = initial_networks(small).target_branch
    lessons = labelled_by(samples, maps)
    (weights,) = learn(branch, small, lessons, generator, marks=[STUDENT_STEPS], rate=STUDENT_RATE)
    return mean_dice(Networks(small), small, weights, source, frames)


def scored(study: Study, source: Dataset, target: Dataset, pool: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Return a row for each candidate: what it is, its true Dice in [0, 1], and score -> value."""
    networks, side = Networks(study), study.image.size
    samples = [target.sample(frame) for frame in target.overview("train", PATIENTS)]
    valid = [sample.valid for sample in samples]
    held_out = middle_frames([*source.site.frames_of("val"), *source.site.frames_of("calibrate")])
    test = middle_frames(target.site.frames_of("test", labelled=True))
    taught = [source.labelled(frame).truth for frame in source.counted_overview("train")]
    prior = mean_area([truth for truth in taught if truth is not None], 0.5, side)
    generator = torch.Generator().manual_seed(study.seed)
    moved = [
        replace(sample, image=device_shift(sample.image[None, None], generator, SCORE_STRENGTH)[0, 0])
        for sample in samples
    ]
    maps = {own.name: predict(networks, study, own.weights, samples) for own in pool}
    totals = [torch.stack(of_one).sum(0) for of_one in zip(*maps.values(), strict=True)]
    rows = []
    for own in pool:
        mine, weights = maps[own.name], own.weights
        others = [(total - p) / (len(pool) - 1) for total, p in zip(totals, mine, strict=True)]
        views = [Views(*pair) for pair in zip(mine, predict(networks, study, weights, moved), strict=True)]
        scores = {
            TODAYS: label_free_score(views, prior, side, FOREGROUND_TOLERANCE[study.image.geometry]),
            "certainty": certainty(mine, valid),
            INFORMATION: information(mine, valid),
            "dropout consistency": consistency(mine, dropped_out(networks, study, weights, samples)),
            "agreement with the other candidates": agreement(mine, others),
            "agreement with the plain source model": agreement(mine, maps[REFERENCE]),
            "reverse validation": reverse_validation(study, samples, mine, source, held_out),
            "foreground prior": prior_match(mine, prior, side),
            SOURCE: mean_dice(networks, study, weights, source, held_out),
        }
        scores[f"{TODAYS} times {SOURCE}"] = scores[TODAYS] * scores[SOURCE]  # both are at the server already
        dice = mean_dice(networks, study, weights, target, test)
        row = {"name": own.name, "planted": own.planted, "steps": own.steps, "parent": own.parent, "dice": dice}
        rows.append(row | {"scores": scores})
    return rows


def main(
    study_file: StudyFile,
    source: Annotated[Path, typer.Option(metavar="DIR", help="labelled site folder")],
    target: Annotated[list[Path], typer.Option(metavar="DIR", help="site folder with test masks; repeat")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON file to write")],
    seed: Seed = 0,
) -> None:
    """Train a pool of models on each pair of sites and write their true Dice and every label-free score.

    The supervised trainings are the same for all targets. Of STUDY only grid, network, augmentation, batch size and
    what is done to predictions count. OUT is written anew after each target.
    """
    out.parent.mkdir(parents=True, exist_ok=True)  # not after the training
    torch.set_num_threads(1)
    begun = time.process_time()
    study = load_study(study_file).model_copy(update={"seed": seed})
    labelled = Dataset(load_site(source), study)
    lessons = [labelled.labelled(frame) for frame in labelled.site.frames_of("train")]
    trained = supervised(study, lessons)
    pairs: dict[str, Any] = {}
    for folder in target:
        unlabelled = Dataset(load_site(folder), study)
        images = [unlabelled.sample(frame) for frame in middle_frames(unlabelled.site.frames_of("train"))]
        rows = scored(study, labelled, unlabelled, [*trained, *adapted(study, trained, images)])
        pairs[unlabelled.site.config.name] = rows
        found = {**origin("simulations.ablation.ranking", seed), "study": study_file.name}
        found |= {"cpu_minutes": round((time.process_time() - begun) / 60, 1), "source": labelled.site.config.name}
        write_figures(out, found | {"pairs": pairs})
        print(f"{unlabelled.site.config.name} done", file=sys.stderr)


if __name__ == "__main__":
    only(
        main,
        "python -m simulations.ablation.ranking configs/self-training.yaml --source runs/busbra/ge-logiq7 "
        "--target runs/busbra/toshiba-aplio300 --out docs/results/ranking/busbra.json",
    )
