"""One round as it happens: who is asked what, which replies keep the contract, and what is recorded of it.

What follows from the replies is `server.algorithm`'s; how bytes reach a site is the `Transport`'s.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from common.components import Role, Shapes, component_of, select
from common.contract import check_masked, check_metrics, check_tensors
from common.errors import ContractError
from common.messages import Masking, Message, Refusal, TaskReply, TaskRequest
from common.stage import Round
from common.study import Study
from common.tasks import Task
from server.algorithm import Reply, RoleSum, apply, begun
from server.history import RoundRecord, SiteRecord
from server.masked_round import MaskedRound
from server.state import ServerState
from server.survivors import Survivors
from server.transport import Failure, Transport

log = logging.getLogger("crossprobe.server")

#: The refusal of a site's app whose worker was still at work when the round ended.
TIMEOUT = "worker-timeout"


def requests_of(study: Study, state: ServerState, round_: Round) -> dict[str, Message]:
    """Return each site's message: its task's header and only the components that the task needs."""
    messages: dict[Role, Message] = {}
    requests = {}
    for site, participant in sorted(state.participants.items()):
        task = round_.stage.task_of(participant.role)
        if task is None or (task.split == "test" and not participant.labelled_test):
            continue
        if participant.role not in messages:  # all sites of a role get the same bytes
            header = TaskRequest(
                study=study.hash(),
                round=round_.index,
                stage=round_.stage.name,
                task=task.task,
                foreground_prior=state.foreground_prior,
                masking=_masking(state, participant.role) if study.masks(task, participant.role) else None,
            )
            tensors = state.components | state.released if task.of_released else state.components
            messages[participant.role] = Message.of(header, select(tensors, study.components_of(task)))
        requests[site] = messages[participant.role]
    return requests


def _masking(state: ServerState, role: Role) -> Masking:
    known = sorted(state.participants.items())
    keys = {site: one.mask_key for site, one in known if one.role == role and one.mask_key is not None}
    return Masking(keys=keys, patients=sum(state.participants[site].patients for site in keys))


def accept(reply: Message, request: Message, shapes: Shapes, max_norm: float) -> TaskReply:
    """Return the header of a reply that keeps the contract.

    Args:
        shapes: of the updates that the task sends.

    Raises:
        ContractError: if it is a refusal, answers another request, or its tensors or metrics are not
            the contract's.
    """
    header, asked = reply.header, request.header
    if isinstance(header, Refusal):
        raise ContractError(header.code, header.message)
    if not isinstance(header, TaskReply) or not isinstance(asked, TaskRequest):
        raise ContractError("not-a-reply", "expected a task's reply")
    answered = (header.request, header.study, header.round, header.stage, header.task)
    if answered != (request.sha256, asked.study, asked.round, asked.stage, asked.task):
        raise ContractError("other-request", "the reply answers another study, round or request")
    if asked.masking is None:
        if header.shares:
            raise ContractError("not-a-reply", "shares of masks came with an update that has none")
        check_tensors(reply.tensors, shapes, max_norm=max_norm)
    else:
        check_masked(reply.tensors, shapes)
    check_metrics(asked.task, header.metrics)
    return header


def run_round(
    study: Study, state: ServerState, round_: Round, transport: Transport, survivors: Survivors | None = None
) -> tuple[ServerState, RoundRecord]:
    """Run one round and return the state after it and its record.

    Where fewer valid replies than the quorum came, the state is the one before, but for what travelled, and the
    record's `counted` is False.

    Args:
        survivors: what an earlier attempt at the round settled; default: there was none.
    """
    start, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    state = begun(state, round_)
    requests = requests_of(study, state, round_)
    sites: dict[str, SiteRecord] = {}
    masked = MaskedRound(state, requests, study.participation.max_norm, survivors or Survivors())

    def task_of(site: str) -> Task:
        task = round_.stage.task_of(state.participants[site].role)
        assert task is not None
        return task

    def replies() -> Iterator[Reply | RoleSum]:
        """Yield what keeps the contract, and record all that comes."""
        payloads = {site: request.payload for site, request in requests.items() if masked.wants(site)}
        deadline_s = study.participation.deadline_s
        for site, payload in transport.exchange(payloads, lambda site: task_of(site).task, deadline_s):
            seconds = round(time.monotonic() - start, 3)
            record, reply = _judge(study, state, task_of(site), site, requests[site], payload, masked)
            sites[site] = replace(record, seconds=seconds)
            if reply is not None:
                yield reply
        yield from masked.unmasked(transport, deadline_s, sites)

    after, diagnostics = apply(study, state, round_, replies())
    for site, error in diagnostics.refused.items():
        sites[site] = replace(_refused(sites[site], site, error), metrics={})
    record = RoundRecord(
        round=round_.index,
        stage=round_.stage.name,
        started=started,
        seconds=round(time.monotonic() - start, 3),
        sites=dict(sorted(sites.items())),
        counted=diagnostics.counted,
        score=diagnostics.score,
        released_round=after.released_round if diagnostics.counted else None,
        rolled_back=diagnostics.rolled_back,
    )
    after = replace(
        after,
        bytes_to_sites=state.bytes_to_sites + sum(site.bytes_to for site in sites.values()),
        bytes_from_sites=state.bytes_from_sites + sum(site.bytes_from for site in sites.values()),
    )
    return after, record


def _judge(
    study: Study,
    state: ServerState,
    task: Task,
    site: str,
    request: Message,
    payload: bytes | Failure,
    masked: MaskedRound,
) -> tuple[SiteRecord, Reply | None]:
    """Return the record of what a site sent, and its reply where that keeps the contract and can be counted at once."""
    record = SiteRecord(state.participants[site].role, task.task, "ok", bytes_to=len(request.payload))
    if isinstance(payload, Failure):
        return replace(record, status=payload.code, detail=payload.detail), None
    record = replace(record, bytes_from=len(payload))
    shapes = {name: x.shape for name, x in state.components.items() if component_of(name) in task.trains}
    try:
        reply = Message.parse(payload)
        record = replace(record, ledger_head=_ledger_head(reply))
        header = accept(reply, request, shapes, study.participation.max_norm)
        kept = masked.keep(site, header, reply.tensors)
    except ContractError as error:
        return _refused(record, site, error), None
    return replace(record, metrics=header.metrics), None if kept else Reply(site, header.metrics, reply.tensors)


def _refused(record: SiteRecord, site: str, error: ContractError) -> SiteRecord:
    log.warning("%s: reply of %s refused: %s", record.task, site, error)
    return replace(record, status="late" if error.code == TIMEOUT else "refused", detail=str(error))


def _ledger_head(reply: Message) -> str:
    """Return the head that a reply carries, also one that is not accepted, or an empty text."""
    return (reply.header.ledger_head or "") if isinstance(reply.header, TaskReply | Refusal) else ""
