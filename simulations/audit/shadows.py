"""Membership by shadow models: what a patient looks like to models that were trained with him, and without.

An image that is easy for every model says nothing of its membership, and a hard one that is easy for this model does.
So the study is trained again, some times, with other patients of the same sites, and each score is compared with what
these models say of the same patient. That is difficulty calibration (Watson et al. 2022, arXiv 2111.08440), and the
likelihood ratio of Carlini et al. 2022 (arXiv 2112.03570) with one gap and one deviation for all patients, which is as
much as a few shadow models can tell.

The attacker is taken to have the images and masks of all patients of the sites and to know the study, and not who was
in it: more than a coordinator has.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from clients.data.site import Site
from clients.node.worker import Worker
from clients.released import Model, load_model
from common.simulated import simulated_secret
from common.study import Study
from server.run import run_study
from simulations.audit.membership import Membership, Scores, measured, scores_of
from simulations.local import LocalTransport


def shadow_membership(
    model: Model,
    sites: Sequence[Site],
    pairs: int,
    seed: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Membership]:
    """Yield what the attacks of `simulations.audit.membership` find with the help of shadow models.

    Args:
        sites: all that the model was trained on.
        pairs: of shadow models; the patients of one are those that the other lacks.

    Raises:
        RunError: if the sites are not enough for the study.
    """
    draws = [_members(site, pairs, seed) for site in sites]
    seen: list[list[dict[str, Scores]]] = []  # shadow model, site -> attack -> scores
    for number in range(2 * pairs):
        on_progress(number)
        drawn = [_drawn(site, draw[number]) for site, draw in zip(sites, draws, strict=True)]
        shadow = _trained(model.study, drawn, seed + 1 + number)
        seen.append([scores_of(shadow, site) for site in sites])
    for index, (site, draw) in enumerate(zip(sites, draws, strict=True)):
        if not site.patients("test"):
            continue  # nobody to tell members from
        for attack, scores in scores_of(model, site).items():
            own = [by_site[index][attack] for by_site in seen]
            yield measured(site, f"{attack}, shadow models", calibrated(scores, own, draw), seed)


def calibrated(scores: Scores, shadows: Sequence[Scores], members: Sequence[set[str]]) -> Scores:
    """Return each patient's score above the middle of what models with him and models without him say.

    Args:
        scores: of the model that is attacked.
        shadows: of each shadow model.
        members: of each shadow model; each patient has to be in some and not in others.
    """

    def middle(patient: str) -> float:
        inside = [own[patient] for own, drawn in zip(shadows, members, strict=True) if patient in drawn]
        outside = [own[patient] for own, drawn in zip(shadows, members, strict=True) if patient not in drawn]
        return float(np.mean(inside) + np.mean(outside)) / 2

    return {patient: score - middle(patient) for patient, score in scores.items()}


def _members(site: Site, pairs: int, seed: int) -> list[set[str]]:
    """Return the members of each shadow model: every patient is in one of each pair."""
    everyone = sorted(site.patients("train") + site.patients("test"))
    rng, half = np.random.default_rng(seed), len(everyone) // 2
    mixed = [rng.permutation(everyone) for _ in range(pairs)]
    return [set(part) for order in mixed for part in (order[:half], order[half:])]


def _drawn(site: Site, members: set[str]) -> Site:
    """Return the site with these patients in `train`, and the others of `train` and `test` in `test`."""
    frames = (
        replace(frame, split="train" if frame.patient in members else "test")
        if frame.split in ("train", "test")
        else frame
        for frame in site.frames
    )
    return replace(site, frames=tuple(frames))


def _trained(study: Study, sites: Sequence[Site], seed: int) -> Model:
    """Return a study's released model, trained by these sites in this process."""
    initial = {name: weights for name, weights in study.initial.items() if name != "baseline"}
    study = study.model_copy(update={"seed": seed, "initial": initial})
    workers = [Worker(site, study, simulated_secret(study, site.config.name)) for site in sites]
    with tempfile.TemporaryDirectory(prefix="crossprobe-") as folder:
        run_study(study, LocalTransport(workers), Path(folder) / "shadow")
        return load_model(Path(folder) / "shadow")
