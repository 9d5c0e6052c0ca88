"""All attacks of the audit on one site, and what each got."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clients.data.site import Site, load_site
from clients.node.refusals import ROUND_SPENT
from clients.node.worker import Worker
from clients.released import load_model
from common.components import ROLES, Tensors
from common.messages import digest
from common.release import WEIGHTS, find_release
from common.simulated import simulated_secret
from common.stage import Round
from common.study import Study
from simulations.audit.ask import Refused, ask, hostile_study
from simulations.audit.combining import mean, unmixed
from simulations.audit.gates import GatedTrap, TileTrap
from simulations.audit.matching import match_gradient
from simulations.audit.membership import membership
from simulations.audit.numbers import numbers
from simulations.audit.shadows import shadow_membership
from simulations.audit.similarity import Match
from simulations.audit.supervised_gates import GatedSuperviseTrap
from simulations.audit.trap import MimTrap, SuperviseTrap, Trap, matches
from simulations.simulate import hardware

#: Settings of a policy that let every attack of the audit through.
LIFTED = {
    "max_delta": 1.0,
    "min_update_patients": 1,
    "min_update_draws": 1,
    "max_mask_ratio": 1.0,
    "max_mask_side": 1.0,
    "implausible_weights": "report",
}
#: What counts as rebuilt: like the patient's image, and more like it than like any other patient's.
REBUILT, MARGIN = 0.95, 0.01
#: Under noise 1 the update of one step is noise but for what many rounds have in common.
AVERAGED_ROUNDS = 40
#: Without noise each round is another mean of patients; the policy's `max_rounds` allows 280.
UNMIXED_ROUNDS = 200
#: Sites that secure aggregation sums at the least, and the scale of a gradient far below AdamW's eps.
SUMMED, LINEAR = 3, 1e-8
MATCHING_STEPS = 150


@dataclass(frozen=True)
class Attack:
    """One attack: the study that it proposes, and how it reads the replies.

    Attributes:
        trap: None: by optimisation, without crafted weights.
        combined: what becomes of all rounds' images together; None: each is looked at by itself.
    """

    name: str
    study: Study
    rounds: int
    trap: Callable[[Study], Trap] | None
    combined: Callable[[list[Tensor]], list[Tensor]] | None = None


@dataclass(frozen=True)
class Reconstruction:
    """What one attack got from one site.

    Attributes:
        patients: a step, on average.
        noise: multiplier of differential privacy; None without.
        summed: sites of whose updates the coordinator sees only the mean; 1: it sees each one.
        answer: of the site under its own policy: `answered`, or the code of its refusal.
        lifted: the numbers are from a site whose policy has no limits, since its own refused.
        correlation: of a rebuilt image with the training image it is most like; the rebuilt image is the one whose
            `correlation - other` is largest.
        other: of the same rebuilt image with its best match among all other patients: the reference.
        rebuilt: different patients with a correlation above `REBUILT`, at least `MARGIN` above any other's.
        drawn: images behind all rounds' updates, on average.
    """

    site: str
    attack: str
    patients: int
    noise: float | None
    rounds: int
    answer: str
    lifted: bool
    correlation: float
    other: float
    rebuilt: int
    drawn: int
    summed: int = 1


def open_worker(folder: Path | Site, study: Study, *, lifted: bool = False) -> Worker:
    """Return a simulated site's worker, as its policy is or with every limit lifted that stops an attack."""
    site = load_site(folder) if isinstance(folder, Path) else folder
    if lifted:
        policy = site.config.policy.model_copy(update=LIFTED)
        site = replace(site, config=site.config.model_copy(update={"policy": policy}))
    return Worker(site, study, simulated_secret(study, site.config.name))


def audit_sites(
    folders: Sequence[Path],
    model: Path | None,
    *,
    command: str,
    rounds: int,
    seed: int,
    shadow_pairs: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Return what every attack got from every site, and membership in a model, see `common.audit_record`.

    Args:
        model: a release, or the finished run that holds it; None: none.
        rounds: replies that each attack reads; 0: no attack on images.
        shadow_pairs: of models trained to tell membership by, where there is a model.
        command: as it was typed, for the record.

    Raises:
        SiteFolderError: if a folder has findings.
        RunError: if the model cannot be read.
    """
    torch.set_num_threads(1)
    logging.getLogger("crossprobe.worker").setLevel(logging.ERROR)  # refusals are in the table
    released = load_model(model) if model is not None else None
    sites = [load_site(folder) for folder in folders]
    work: list[tuple[tuple[Site, ...], Attack]] = []
    work += [((site,), attack) for site in sites for attack in attacks_on(site, rounds, seed)] if rounds else []
    for role in ROLES if rounds else ():
        together = tuple(site for site in sites if site.config.role == role)
        if len(together) >= SUMMED:
            work.append((together, attack_on_sums(together[0], rounds, seed)))
    findings, total = [], len(work) + 2 * shadow_pairs
    for done, (attacked, attack) in enumerate(work):
        on_progress(done, total)
        findings.append(run_attack(attack, *attacked, seed=seed))
    members = [found for site in sites for found in membership(released, site, seed)] if released else []
    if released and shadow_pairs:
        members += shadow_membership(
            released, sites, shadow_pairs, seed, lambda done: on_progress(len(work) + done, total)
        )
    on_progress(total, total)
    told = [found for site in sites for found in numbers(site, released, seed)]
    return {
        "command": command,
        "hardware": hardware(),
        "seed": seed,
        "model": released.study.name if released else None,
        "study_sha256": released.study.hash() if released else None,
        "weights_sha256": digest((find_release(model) / WEIGHTS).read_bytes()) if model is not None else None,
        "reconstruction": [asdict(finding) for finding in findings],
        "membership": [asdict(found) for found in members],
        "numbers": [asdict(found) for found in told],
    }


def attacks_on(site: Site, rounds: int, seed: int) -> Iterator[Attack]:
    """Yield the attacks on a site's role, the plain ones first."""
    target = site.config.role == "target"
    task = "self_supervise" if target else "supervise"
    trap: Callable[[Study], Trap] = MimTrap if target else SuperviseTrap
    network = {"features": (16, 16, 32, 64, 64, 16 if target else 64)}
    plain: dict[str, Any] = {"network": network, "size": 64 if target else 32, "learning_rate": 0.01, "seed": seed}
    privacy = {"nominal_patients": len(site.patients("train")), "delta": 1e-5, "epsilon_cap": 1e9}
    for patients in (1, 2, 8):
        yield Attack("trap", hostile_study(task, batch_size=patients, rounds=rounds, **plain), rounds, trap)
    study = hostile_study(task, batch_size=8, rounds=UNMIXED_ROUNDS, **plain)
    yield Attack("trap, all rounds unmixed", study, UNMIXED_ROUNDS, trap, partial(unmixed, patients=8))
    if target:
        wide: dict[str, Any] = {"seed": seed, "size": 32, "network": {"features": (16, 16, 32, 64, 256, 16)}}
        for patients, ratio in ((8, 0.99), (32, 0.8)):
            study = hostile_study(task, batch_size=patients, rounds=rounds, mask_ratio=ratio, **wide)
            yield Attack("gates", study, rounds, GatedTrap)
        for patients in (32, 128):
            study = hostile_study(task, batch_size=patients, rounds=rounds, mask_ratio=0.8, **wide)
            yield Attack("gates, weights that look trained", study, rounds, TileTrap)
    else:
        many: dict[str, Any] = {"seed": seed, "size": 32, "network": {"features": (32, 32, 32, 64, 64, 256)}}
        for patients in (8, 32):
            study = hostile_study(task, batch_size=patients, rounds=rounds, learning_rate=0.01, **many)
            yield Attack("gates", study, rounds, GatedSuperviseTrap)
    for noise in (0.1, 1.0):
        own = privacy | {"noise_multiplier": noise}
        yield Attack("trap", hostile_study(task, rounds=rounds, privacy=own, **plain), rounds, trap)
    if target:
        study = hostile_study(task, rounds=AVERAGED_ROUNDS, privacy=privacy | {"noise_multiplier": 1.0}, **plain)
        yield Attack("trap, averaged", study, AVERAGED_ROUNDS, trap, mean)
    else:
        yield Attack(
            "optimisation", hostile_study(task, rounds=1, size=32, seed=seed, trains=["source_branch"]), 1, None
        )


def attack_on_sums(site: Site, rounds: int, seed: int) -> Attack:
    """Return the attack on what secure aggregation leaves visible, the mean of several sites of a role."""
    if site.config.role == "target":
        network = {"features": (16, 16, 32, 64, 256, 16)}
        study = hostile_study("self_supervise", batch_size=8, rounds=rounds, size=32, network=network, seed=seed)
        return Attack("gates", study, rounds, partial(GatedTrap, scale=LINEAR))
    study = hostile_study("supervise", rounds=rounds, size=32, learning_rate=0.01, seed=seed)
    return Attack("trap", study, rounds, SuperviseTrap)


def run_attack(attack: Attack, *sites: Site, seed: int = 0) -> Reconstruction:
    """Return what an attack gets from a site, or from the mean over several.

    Where a site's own policy refuses, it is what sites without limits give. A private round for which nobody was drawn
    gives nothing: its privacy is spent, and no update comes of it.
    """
    answer, lifted = "answered", False
    trap = attack.trap(attack.study) if attack.trap is not None else None
    try:
        found = _matches(attack, trap, [open_worker(site, attack.study) for site in sites], seed)
    except Refused as refusal:
        answer, lifted = refusal.code, True
        found = _matches(attack, trap, [open_worker(site, attack.study, lifted=True) for site in sites], seed)
    if found is None:
        answer, found = f"{answer}, nobody was drawn", []
    # not the highest correlation: a mean of many images is like all of them
    best = max(found, key=lambda match: match.correlation - match.other, default=Match(0.0, "", 0.0))
    privacy = attack.study.privacy
    return Reconstruction(
        site=" + ".join(site.config.name for site in sites),
        attack=attack.name,
        patients=attack.study.batch_size,
        noise=privacy.noise_multiplier if privacy else None,
        rounds=attack.rounds,
        answer=answer,
        lifted=lifted,
        correlation=best.correlation,
        other=best.other,
        rebuilt=len(rebuilt_patients(found)),
        drawn=attack.study.batch_size * attack.rounds * len(sites),
        summed=len(sites),
    )


def rebuilt_patients(found: Sequence[Match]) -> set[str]:
    """Return the patients that count as rebuilt."""
    return {m.patient for m in found if m.correlation > REBUILT and m.correlation > m.other + MARGIN}


def _matches(attack: Attack, trap: Trap | None, workers: Sequence[Worker], seed: int) -> list[Match] | None:
    """Return what each image is like that an attack gets; None where nobody was drawn in any round."""
    study, rounds = attack.study, attack.study.rounds()[: attack.rounds]
    if trap is None:
        images = [match_gradient(workers[0], study, r, iterations=MATCHING_STEPS, seed=seed) for r in rounds]
    else:
        updates = [(update, r) for r in rounds if (update := _mean(workers, study, r, trap)) is not None]
        if not updates:
            return None
        images = [image for update, r in updates for image in trap.read(update, r)]
    if attack.combined is not None:
        images = attack.combined(images)
    return matches(images, *(worker.data for worker in workers))


def _mean(workers: Sequence[Worker], study: Study, round_: Round, trap: Trap) -> Tensors | None:
    """Return the mean of several sites' updates; of one, its own; None where nobody was drawn."""
    try:
        updates = [ask(worker, study, round_, trap.tensors) for worker in workers]
    except Refused as refusal:
        least = max(worker.site.config.policy.min_update_patients for worker in workers)
        if refusal.code == ROUND_SPENT and least == 1:  # a policy that asks for more refuses few in the same words
            return None
        raise
    return {name: np.asarray(np.mean([own[name] for own in updates], axis=0)) for name in updates[0]}
