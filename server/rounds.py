"""One round: who is asked what, what of the replies counts, and the state that follows.

Plain functions on plain state; how bytes reach a site is the `Transport`'s business.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

import numpy as np

from common.contract import (
    BASELINE,
    ROLES,
    Refusal,
    Role,
    TaskReply,
    TaskRequest,
    Tensors,
    check_metrics,
    check_tensors,
    component_of,
    digest,
    pack,
    select,
    unpack,
)
from common.errors import ContractError
from common.study import BranchName, Round, Study
from server.aggregate import RoleSum, apply_updates
from server.history import RoundRecord, SiteRecord
from server.state import Seat, ServerState, fused_tensors

log = logging.getLogger("crossprobe.server")

#: How long sites may take to connect, and then to answer who they are, in seconds: Ray starts slowly.
ENROL_S = 180.0
#: The refusal of a site's app whose worker was still at work when the round ended.
TIMEOUT = "worker-timeout"


@dataclass(frozen=True)
class Failure:
    """A site that gave no reply: `code` is `failed` or `late`; `detail` is for the history."""

    code: str
    detail: str


class Transport(Protocol):
    """The way to the sites."""

    def enrol(
        self, request: bytes, known: Collection[str] = (), patience_s: float = ENROL_S
    ) -> Mapping[str, bytes | Failure]:
        """Ask every reachable site but the `known`; site name -> reply.

        Args:
            patience_s: how long sites may take to connect, and then to answer.
        """

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """Send each site its request and yield the replies as they arrive, `late` ones at the deadline.

        Args:
            requests: site name -> message.
            task: site name -> name of its task, by which a network may address it.
        """


def requests_of(study: Study, state: ServerState, round_: Round) -> dict[str, bytes]:
    """Return each site's message: its task's header and only the components that the task needs."""
    tensors = state.components
    if round_.stage.name == "evaluate":
        tensors = {**state.components, **state.released}
    messages: dict[tuple[Role, str], bytes] = {}
    requests = {}
    for site, seat in sorted(state.seats.items()):
        task = round_.stage.task_of(seat.role)
        if task is None or (task.task == "evaluate" and not seat.labelled_test):
            continue
        key = (seat.role, task.task)
        if key not in messages:  # all sites of a role get the same bytes
            header = TaskRequest(
                study=study.hash(),
                round=round_.index,
                stage=round_.stage.name,
                task=task.task,
                foreground_prior=state.foreground_prior,
            )
            messages[key] = pack(header, select(tensors, study.components_of(task)))
        requests[site] = messages[key]
    return requests


def accept(
    payload: bytes, request: bytes, shapes: Mapping[str, tuple[int, ...]], max_norm: float
) -> tuple[TaskReply, Tensors]:
    """Return header and updates of a reply that keeps the contract.

    Raises:
        ContractError: if it is a refusal, answers another request, or its tensors or metrics are not
            the contract's.
    """
    header, updates = unpack(payload)
    if isinstance(header, Refusal):
        raise ContractError(header.code, header.message)
    asked, _ = unpack(request)
    if not isinstance(header, TaskReply) or not isinstance(asked, TaskRequest):
        raise ContractError("not-a-reply", "expected a task's reply")
    answered = (header.request, header.study, header.round, header.stage, header.task)
    if answered != (digest(request), asked.study, asked.round, asked.stage, asked.task):
        raise ContractError("other-request", "the reply answers another study, round or request")
    check_tensors(updates, shapes, max_norm=max_norm)
    check_metrics(asked.task, header.metrics)
    return header, updates


def run_round(study: Study, state: ServerState, round_: Round, transport: Transport) -> tuple[ServerState, RoundRecord]:
    """Run one round and return the state after it and its record.

    Where fewer valid replies than the quorum came, the state is the one before and the record's
    `counted` is False.
    """
    begun, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    if round_.step == 0:
        state = replace(state, components=taken_over(state.components, round_.stage.begin))
    requests = requests_of(study, state, round_)
    everyone = {role: sum(s.patients for s in state.seats.values() if s.role == role) for role in ROLES}
    sums = {role: RoleSum(most_patients=patients) for role, patients in everyone.items()}
    means: dict[str, dict[str, float]] = {}
    sites: dict[str, SiteRecord] = {}

    def task_of(site: str) -> str:
        task = round_.stage.task_of(state.seats[site].role)
        assert task is not None
        return task.task

    for site, payload in transport.exchange(requests, task_of, study.participation.deadline_s):
        seat = state.seats[site]
        task = round_.stage.task_of(seat.role)
        assert task is not None
        seen = SiteRecord(
            seat.role, task.task, "ok", bytes_to=len(requests[site]), seconds=round(time.monotonic() - begun, 3)
        )
        if isinstance(payload, Failure):
            sites[site] = replace(seen, status=payload.code, detail=payload.detail)
            continue
        seen = replace(seen, bytes_from=len(payload))
        try:
            shapes = {n: x.shape for n, x in state.components.items() if component_of(n) in task.trains}
            reply, updates = accept(payload, requests[site], shapes, study.participation.max_norm)
            if updates:
                sums[seat.role].add(updates, seat.patients)
        except ContractError as error:
            log.warning("round %d: reply of %s refused: %s", round_.index, site, error)
            status = "late" if error.code == TIMEOUT else "refused"
            sites[site] = replace(seen, status=status, detail=str(error), ledger_head=_ledger_head(payload))
            continue
        means[site] = reply.metrics
        sites[site] = replace(seen, metrics=reply.metrics, ledger_head=reply.ledger_head or "")

    record = RoundRecord(
        round=round_.index,
        stage=round_.stage.name,
        started=started,
        seconds=round(time.monotonic() - begun, 3),
        sites=dict(sorted(sites.items())),
        counted=not lacking(study, [state.seats[name].role for name, s in sites.items() if s.status == "ok"], round_),
    )
    state = replace(
        state,
        bytes_to_sites=state.bytes_to_sites + sum(s.bytes_to for s in sites.values()),
        bytes_from_sites=state.bytes_from_sites + sum(s.bytes_from for s in sites.values()),
    )
    if not record.counted:
        return state, record
    return _follow(study, state, round_, sums, means, record)


def taken_over(components: Tensors, begin: Mapping[BranchName, BranchName]) -> Tensors:
    """Return the tensors with those of each branch in `begin` replaced by the other branch's: branch -> other."""
    return components | {
        branch + name.removeprefix(other): tensor
        for branch, other in begin.items()
        for name, tensor in components.items()
        if name.startswith(f"{other}.")
    }


def _ledger_head(payload: bytes) -> str:
    """Return the head that a reply carries, also one that was not accepted, or an empty text."""
    try:
        header, _ = unpack(payload)
    except ContractError:
        return ""
    return (header.ledger_head or "") if isinstance(header, TaskReply | Refusal) else ""


def lacking(study: Study, roles: Sequence[Role], round_: Round) -> dict[Role, tuple[int, int]]:
    """Return each role that keeps a round from counting, with how many of it there are and how many it needs.

    Args:
        roles: of the sites that did their part, or could.
    """
    if round_.stage.name == "evaluate":
        return {}  # an evaluation reports whoever answered
    return {
        role: (roles.count(role), least)
        for role, least in study.participation.quorum.items()
        if round_.stage.task_of(role) is not None and roles.count(role) < least
    }


def weighted(seats: Mapping[str, Seat], metrics: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    """Return the patient-weighted mean of a metric over the sites that sent it, or None."""
    known = [(m[name], seats[site].patients) for site, m in sorted(metrics.items()) if name in m]
    total = sum(patients for _, patients in known)
    return sum(value * patients for value, patients in known) / total if total else None


def _follow(
    study: Study,
    state: ServerState,
    round_: Round,
    sums: Mapping[Role, RoleSum],
    metrics: Mapping[str, Mapping[str, float]],
    record: RoundRecord,
) -> tuple[ServerState, RoundRecord]:
    """Return the state after a round that counts: best model by score, roll-back or updates."""
    score = weighted(state.seats, metrics, "score")
    rolled_back = False
    if score is not None:
        best = max(score, score if state.best_score is None else state.best_score)
        state = replace(state, best_score=best)
        refining = round_.stage.target is not None and round_.stage.target.task == "self_train"
        if score >= best - study.release.tolerance:
            received = fused_tensors(state.components)
            state = replace(state, released=received, released_round=round_.index)
        else:
            rolled_back = refining and score < best - study.release.rollback
    if rolled_back:
        components = {**state.components, **state.released}
    else:
        components = apply_updates(state.components, sums, round_.stage)
    prior = weighted(state.seats, metrics, "foreground_fraction")
    state = replace(
        state,
        round=round_.index + 1,
        components=components,
        # A share may be over 1 by a rounding error, which the next request would not take.
        foreground_prior=state.foreground_prior if prior is None else min(1.0, max(0.0, prior)),
    )
    return state, replace(record, score=score, released_round=state.released_round, rolled_back=rolled_back)


def initial_state(study: Study, seats: Mapping[str, Seat], components: Mapping[str, np.ndarray]) -> ServerState:
    """Return the state before the first round. `components` may hold `baseline` tensors, which stay as they are."""
    wanted = {component_of(name) for name in components}
    if "baseline" not in study.initial:
        wanted -= set(BASELINE)
    return ServerState(round=0, components=select(components, wanted), seats=dict(seats))
