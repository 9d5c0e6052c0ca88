"""The algorithm, as two pure functions on plain state; the file to read first.

Each round, every site does its role's task on the components that it received and sends back what it changed.
From these replies the server's next state follows:

    for each role:        u_role = mean over its sites of (trained - received)     (`server.aggregation`)
    for each component:   new = old + rho_source * u_source + rho_target * u_target

where a stage gives rho. Sites that can tell how good the received model is say so: targets without labels (`score`),
sources by those of their validation patients (`val_dice`). By both the released model is chosen: that of the latest
round in which neither is more than `release.tolerance` below the best of the models released so far. A round that
trained under a model far below in either is undone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from common.components import BASELINE, ROLES, Role, Tensors, component_of, select
from common.errors import ContractError
from common.stage import Round, Stage
from common.study import Study
from server.aggregation import Aggregator, ExactMean, aggregator
from server.state import Participant, ServerState, fused_tensors


@dataclass(frozen=True)
class Reply:
    """What one site sent that keeps the contract: metrics, and updates by tensor name, float32."""

    site: str
    metrics: Mapping[str, float]
    updates: Tensors


@dataclass(frozen=True)
class RoleSum:
    """What the updates of a role's sites sum up to, where nobody may see a single one (`common.masking`).

    Attributes:
        total: int64, `rint(x * 2^32) * patients` summed over the sites.
        patients: of these sites together.
    """

    role: Role
    total: Tensors
    patients: int


@dataclass(frozen=True)
class Diagnostics:
    """What became of a round, for people to read.

    Attributes:
        counted: enough sites of each role replied; else the state is the one before.
        score: patient-weighted label-free score of the model that the sites received, or None.
        rolled_back: the updates were dropped and the released model restored.
        refused: site -> why its updates could not be added up after all.
    """

    counted: bool
    score: float | None = None
    rolled_back: bool = False
    refused: Mapping[str, ContractError] = field(default_factory=dict)


def init(study: Study, participants: Mapping[str, Participant], components: Tensors) -> ServerState:
    """Return the state before the first round. `components` may hold `baseline` tensors, which stay as they are."""
    wanted = {component_of(name) for name in components}
    if not study.compares:
        wanted -= set(BASELINE)
    return ServerState(round=0, components=select(components, wanted), participants=dict(participants))


def begun(state: ServerState, round_: Round) -> ServerState:
    """Return the state at the beginning of a round: in a stage's first, a branch may take over the other's weights."""
    if round_.step > 0 or not round_.stage.begin:
        return state
    copies = {
        branch + name.removeprefix(other): tensor
        for branch, other in round_.stage.begin.items()
        for name, tensor in state.components.items()
        if name.startswith(f"{other}.")
    }
    return replace(state, components=state.components | copies)


def apply(
    study: Study, state: ServerState, round_: Round, replies: Iterable[Reply | RoleSum]
) -> tuple[ServerState, Diagnostics]:
    """Return the state after a round, and what became of it.

    Args:
        replies: in any order, taken one by one, so that only one need be in memory; the order changes no bit. Where
            updates are summed under masks, a role's replies hold none, and their sum comes beside them.
    """
    sums = _aggregators(state, round_.stage)
    metrics: dict[str, Mapping[str, float]] = {}
    refused = {}
    for reply in replies:
        if isinstance(reply, RoleSum):
            total = sums[reply.role]
            assert isinstance(total, ExactMean)  # as `common.study.Study` sees to
            total.add_sum(reply.total, reply.patients)
            continue
        site = state.participants[reply.site]
        try:
            if reply.updates:
                sums[site.role].add(reply.updates, site.patients)
            metrics[reply.site] = reply.metrics
        except ContractError as error:
            refused[reply.site] = error
    if lacking(study, [state.participants[site].role for site in metrics], round_):
        return state, Diagnostics(counted=False, refused=refused)

    score = weighted(state.participants, metrics, "score")
    rolled_back = False
    if score is not None:
        val_dice = {site: own["val_dice"] for site, own in metrics.items() if "val_dice" in own}
        state, rolled_back = _judged(study, state, round_, score, val_dice)
    components = state.components | state.released if rolled_back else updated(state.components, sums, round_.stage)
    prior = weighted(state.participants, metrics, "foreground_fraction")
    if prior is not None:
        # A share may be over 1 by a rounding error, which the next request would not take.
        state = replace(state, foreground_prior=min(1.0, max(0.0, prior)))
    state = replace(state, round=round_.index + 1, components=components)
    return state, Diagnostics(True, score, rolled_back, refused)


def updated(old: Tensors, sums: Mapping[Role, Aggregator], stage: Stage) -> Tensors:
    """Return `old + sum over roles of rho_role * mean update of the role`, float32.

    Args:
        old: all tensors of the server.
        sums: role -> its summed updates; a role without replies is left out and moves nothing.
        stage: gives rho for each component and role.
    """
    change: dict[str, np.ndarray] = {}
    # a fixed order of roles: the float64 additions below are not associative
    for role in sorted(role for role in sums if sums[role].patients):
        for name, mean in sums[role].mean().items():
            step = stage.rho(component_of(name), role) * mean
            change[name] = change[name] + step if name in change else step
    return {
        name: (x.astype(np.float64) + change[name]).astype(np.float32) if name in change else x
        for name, x in old.items()
    }


def lacking(study: Study, roles: Sequence[Role], round_: Round) -> dict[Role, tuple[int, int]]:
    """Return each role that keeps a round from counting, with how many of it there are and how many it needs.

    Args:
        roles: of the sites that did their part, or could.
    """
    tasks = {role: round_.stage.task_of(role) for role in study.participation.quorum}
    return {
        role: (roles.count(role), least)
        for role, least in study.participation.quorum.items()
        # a task that only measures the released model counts, however few answered
        if (task := tasks[role]) is not None and (task.trains or not task.of_released) and roles.count(role) < least
    }


def weighted(
    participants: Mapping[str, Participant], metrics: Mapping[str, Mapping[str, float]], name: str
) -> float | None:
    """Return the patient-weighted mean of a metric over the sites that sent it, or None."""
    known = [(m[name], participants[site].patients) for site, m in sorted(metrics.items()) if name in m]
    total = sum(patients for _, patients in known)
    return sum(value * patients for value, patients in known) / total if total else None


def _judged(
    study: Study, state: ServerState, round_: Round, score: float, val_dice: Mapping[str, float]
) -> tuple[ServerState, bool]:
    """Return the state with the received model released or not, and whether the round has to be undone.

    A model that is not released raises no best: one that won in one number and lost in the other would have all later
    rounds undone. Each source is held against its own best, since probes differ by more than models, and not every
    source answers in every round. Where none answers that did before, nobody knows, and what is released stays.
    """
    changes = {
        site: {"change": dice - state.best_val_dice[site]}
        for site, dice in val_dice.items()
        if site in state.best_val_dice
    }
    change = weighted(state.participants, changes, "change")

    def lost(tolerance: float) -> bool:
        fell = state.best_score is not None and score < state.best_score - tolerance
        return fell or (change is not None and change < -tolerance)

    if lost(study.release.tolerance):
        return state, _refines(round_.stage) and lost(study.release.rollback)
    if change is None and state.best_val_dice and round_.stage.source is not None:
        return state, False
    return replace(
        state,
        released=fused_tensors(state.components),
        released_round=round_.index,
        best_score=score if state.best_score is None else max(score, state.best_score),
        best_val_dice={
            **state.best_val_dice,
            **{x: max(y, state.best_val_dice.get(x, y)) for x, y in val_dice.items()},
        },
    ), False


def _aggregators(state: ServerState, stage: Stage) -> dict[Role, Aggregator]:
    everyone = state.participants.values()
    patients = {role: sum(site.patients for site in everyone if site.role == role) for role in ROLES}
    return {role: aggregator(stage.aggregator, most) for role, most in patients.items()}


def _refines(stage: Stage) -> bool:
    """Whether a stage trains under a model that is judged first, so that a bad round can be undone."""
    return stage.target is not None and stage.selects_release and bool(stage.target.trains)
