"""The worker as a hospital runs it: around `Worker`, what must be true before anything leaves.

For each message: it is in the ledger; its study is approved, by an approval that still holds; the policy
has not expired; its round was not answered before. Only then a task runs, and its reply is on the disk
and in the ledger before it leaves.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from clients.data.site import Site
from clients.governance.accountant import Accountant
from clients.governance.approval import Approval, approval_of, valid_approvals
from clients.governance.cohorts import Cohorts
from clients.governance.ledger import Ledger, LedgerError, entry
from clients.governance.rate_limit import RateLimit
from clients.governance.received import keep_received, read_received
from clients.governance.rollback_check import check_rollback
from clients.governance.state import Answered, State
from clients.governance.witness import Witness
from clients.node.masking import Masker
from clients.node.refusals import ROUND_SPENT, refusal
from clients.node.worker import Worker, enrolment
from common.errors import ContractError, SiteStateError
from common.messages import (
    EnrolRequest,
    Header,
    Message,
    Refusal,
    Request,
    TaskReply,
    TaskRequest,
    UnmaskReply,
    UnmaskRequest,
)
from common.signing import NO_RUN, Sealed, public_key_of, seal, unseal
from common.tasks import TASKS

log = logging.getLogger("crossprobe.worker")

#: How long a request waits for the one before, in seconds: a task that was cancelled ends its step first.
BUSY_WAIT_S = 2.0


class Gatekeeper:
    """Answers messages for one site; one task at a time, from any number of threads.

    Args:
        site: a checked site folder.
        state: its state folder, held by this process alone (`State.locked`).
        witness: is told the head of each line of the ledger, before the reply leaves.

    Raises:
        LedgerError: if the ledger is damaged.
        SiteStateError: if the accountant's file is, or that of cohorts, or if the folder knows less than its ledger.
    """

    def __init__(
        self, site: Site, state: State, *, busy_wait_s: float = BUSY_WAIT_S, witness: Witness = lambda head: None
    ) -> None:
        self.site, self.state, self.busy_wait_s, self.witness = site, state, busy_wait_s, witness
        self.ledger = Ledger(state.ledger)
        self._config = _site_yaml(site)
        self._signing_key = state.signing_key()
        self.accountant = Accountant(state.accountant)
        self.cohorts = Cohorts(state, site.config.name, site.config.policy.min_patients)
        check_rollback(state, self.accountant, self.cohorts)
        self.rate_limit = RateLimit()
        self._at_work, self._writing = threading.Lock(), threading.Lock()
        self._turned_away = 0
        self._worker: Worker | None = None
        self._made_for: tuple[object, ...] = ()

    @property
    def at_work(self) -> bool:
        """Whether a task runs now."""
        return self._at_work.locked()

    def handle(self, payload: bytes, cancelled: Callable[[], bool] = lambda: False) -> bytes:
        """Answer a message; raises nothing.

        A study without a valid approval gets `not-approved`, without a ledger head, whatever else might
        be wrong. Where the ledger cannot be written, nothing leaves but `ledger-unwritable`. Beyond the
        rate limit every message gets `too-many-messages`, unread and always in the same bytes; the first
        of these is in the ledger, and how many followed is in its next line. A signed message gets a signed answer.
        """
        request = unseal(payload)
        reply = self._answered(request, cancelled).payload
        return seal(reply, self._signing_key, "reply") if request.signature else reply

    def _answered(self, request: Sealed, cancelled: Callable[[], bool]) -> Message:
        try:
            with self._writing:
                if not self.rate_limit.left():
                    return self._turn_away(request.payload)
            return self._logged(request, cancelled)
        except LedgerError as error:
            log.error("%s", error)
            return Message.of(refusal("ledger-unwritable"))
        except Exception:
            log.exception("%s: a message could not be handled", self.site.config.name)
            return Message.of(refusal("task-failed"))

    def _logged(self, sealed: Sealed, cancelled: Callable[[], bool]) -> Message:
        payload = sealed.payload
        request: Message | None = None
        try:
            request = Message.parse(payload)
            wrong = "" if isinstance(request.header, Request) else "not-a-request"
        except ContractError as error:
            wrong = error.code
        incoming = entry("in", request or payload)
        with self._writing:
            incoming["unwritten"] = max(0, self._turned_away - 1)
            head = self._append(incoming)
            self._turned_away = 0
        approval = self._approval(request)
        if approval is not None and request is not None:
            reply = self._of_approved(approval, request, sealed, head, cancelled)
        elif wrong and valid_approvals(self.state, self.site.config):
            reply = Message.of(refusal(wrong, ledger_head=head))
        else:
            reply = Message.of(refusal("not-approved"))
        outgoing = entry(
            "out",
            reply,
            request.header if request else None,
            self.accountant.stated(approval.study.privacy) if approval else None,
            charges=self.accountant.count,
            start=self._start_of(reply.header),
        )
        with self._writing:
            self._append(outgoing)
        if not isinstance(reply.header, TaskReply) or reply.header.ledger_head != head:  # else new, not given again
            with self._writing:
                self.rate_limit.use(incoming, outgoing)
        return reply

    def _start_of(self, reply: Header) -> int | None:
        return self.state.answered(reply.study).start if isinstance(reply, TaskReply | UnmaskReply) else None

    def _turn_away(self, payload: bytes) -> Message:
        reply = Message.of(refusal("too-many-messages"))
        self._turned_away += 1
        if self._turned_away == 1:
            log.warning("%s: too many messages; until there are fewer, they are only counted", self.site.config.name)
            lines = (entry("in", payload), entry("out", reply))
            self.rate_limit.use(*lines)
            for line in lines:
                self._append(line)
        return reply

    def _append(self, line: dict[str, Any]) -> str:
        """Write a line of the ledger, bound to what the state knows as it is now; the caller holds `_writing`."""
        head = self.ledger.append(line | {"accountant": self.accountant.sha256, "cohorts": self.cohorts.known})
        self.witness(head)
        return head

    def _approval(self, request: Message | None) -> Approval | None:
        """Return the approval of a request's study as it is on disk now, if it holds."""
        if request is None or not isinstance(request.header, Request):
            return None
        try:
            approval = approval_of(self.state, request.header.study)
        except SiteStateError as error:
            log.error("%s", error)
            return None
        for finding in approval.void(self.site.config) if approval else ():
            log.warning("%s", finding)
            return None
        if _site_yaml(self.site) != self._config:
            log.warning("%s: site.yaml was changed; restart the worker, and approve again", self.site.config.name)
            return None
        return approval

    def _of_approved(
        self, approval: Approval, request: Message, sealed: Sealed, head: str, cancelled: Callable[[], bool]
    ) -> Message:
        """Return the reply to a request of an approved study; raises nothing."""
        try:
            if approval.coordinator:
                sealed.check(public_key_of(approval.coordinator), "request")
            self.site.config.policy.check_date(self.ledger.now().date())
            if isinstance(request.header, EnrolRequest):  # needs no image, and waits for no task
                masker = self._masker(approval, self._place(approval, sealed).start)
                declared = enrolment(request, self.site, approval.study, masker, self.cohorts.counted)
                # As approved: a count that followed the folder would tell when a patient came or went.
                return Message.of(declared.model_copy(update={"patients": approval.patients}))
            if not self._at_work.acquire(timeout=self.busy_wait_s):
                raise ContractError("busy", "another task is running")
            try:
                answered = self._place(approval, sealed)
                if isinstance(request.header, UnmaskRequest):
                    return self._unmask_once(approval, answered, request, request.header, head)
                assert isinstance(request.header, TaskRequest)
                return self._once(approval, answered, request, request.header, sealed.run, head, cancelled)
            finally:
                self._at_work.release()
        except ContractError as error:
            log.warning("%s: refused: %s", self.site.config.name, error)
            code = error.code
        except SiteStateError as error:
            log.error("%s", error)
            code = "state-failed"
        except Exception:
            log.exception("%s: a request could not be handled", self.site.config.name)
            code = "task-failed"
        return Message.of(refusal(code, ledger_head=head))

    def _place(self, approval: Approval, sealed: Sealed) -> Answered:
        """Return how far a study has come here, for a request that is not of a run from before it was started over."""
        answered = self.state.answered(approval.study_hash)
        if approval.coordinator and sealed.run.hex() in answered.superseded:
            raise ContractError("old-run", "the request is of a run from before this study was started over")
        return answered

    def _once(
        self,
        approval: Approval,
        answered: Answered,
        request: Message,
        header: TaskRequest,
        run: bytes,
        head: str,
        cancelled: Callable[[], bool],
    ) -> Message:
        """Run a task, unless its round was answered: then only the very same request gets its very same reply."""
        if request.sha256 == answered.request and answered.reply:
            return Message.parse(answered.reply)
        if header.round < answered.round:
            raise ContractError("old-round", f"round {answered.round} was already answered")
        if header.round == answered.round and request.sha256 != answered.request:
            raise ContractError("round-answered", "the round was already answered, to another request")
        approved = self.state.approval(approval.study_hash).exists
        worker = self._worker_of(approval, answered.start)
        received = read_received(self.state, approval.study_hash, answered.start)
        runs = answered.runs if run == NO_RUN else sorted({*answered.runs, run.hex()})
        masking = header.masking.sha256 if header.masking else ""
        place = replace(
            answered, round=header.round, request=request.sha256, reply=b"", masking=masking, survivors=(), runs=runs
        )

        def begin() -> None:
            """Close the round to any other request: each of them would be another look, whatever came of this one."""
            self.state.keep_answer(approval.study_hash, place)

        reply = worker.answer(
            request,
            lambda: cancelled() or not approved(),
            ledger_head=head,
            frozen=answered.frozen,
            received=received,
            begin=begin,
        )
        if not approved():  # withdrawn while the task ran
            return Message.of(refusal("not-approved"))
        if isinstance(reply.header, TaskReply):
            numbers = TASKS[header.task].metrics
            frozen = {name: value for name, value in reply.header.metrics.items() if numbers[name].frozen}
            place = replace(place, reply=reply.payload, frozen={**frozen, **answered.frozen})
            self.state.keep_answer(approval.study_hash, place)
            brought = received.after(request.tensors, header.round)
            keep_received(self.state, approval.study_hash, answered.start, brought)
        elif isinstance(reply.header, Refusal) and reply.header.code == ROUND_SPENT:
            self.state.keep_answer(approval.study_hash, replace(place, reply=reply.payload))
        return reply

    def _unmask_once(
        self, approval: Approval, answered: Answered, request: Message, header: UnmaskRequest, head: str
    ) -> Message:
        """Help to lay bare the sum of the round that was answered last, with one set of sites only."""
        if header.request != answered.request or not answered.reply:
            raise ContractError("other-request", "what is to be unmasked is not the round that was answered last")
        if answered.masking != header.masking.sha256:  # each other list would lay another pair of masks bare
            raise ContractError("other-sites", "the sum's sites are not those that the update was masked for")
        if answered.survivors and set(answered.survivors) != header.shares.keys():
            raise ContractError("other-survivors", "the round was already unmasked, with other sites")
        reply = self._worker_of(approval, answered.start).unmask(request, ledger_head=head)
        if not answered.survivors:
            self.state.keep_answer(approval.study_hash, replace(answered, survivors=sorted(header.shares)))
        return reply

    def _masker(self, approval: Approval, start: int) -> Masker:
        known = {site: public_key_of(key) for site, key in approval.sites.items()}
        return Masker(self.site.config.name, approval.study_hash, self.state.secret(start), self._signing_key, known)

    def _worker_of(self, approval: Approval, start: int) -> Worker:
        """Return the worker of a study; only the last is kept, since it holds the images in memory."""
        wanted = (approval.study_hash, start, approval.patients, dict(approval.sites))
        if self._worker is None or self._made_for != wanted:
            self._worker, self._made_for = None, wanted
            secret = self.state.study_secret(approval.study, start)
            self._worker = Worker(
                self.site,
                approval.study,
                secret,
                self.accountant,
                device=self.site.config.device,
                masker=self._masker(approval, start),
                patients=approval.patients,
                counting=self.cohorts.counted,
            )
        assert self._worker is not None
        return self._worker


def _site_yaml(site: Site) -> bytes | None:
    """Return the file that holds the policy as it is now: one that was tightened must not wait for a restart."""
    try:
        return (site.folder / "site.yaml").read_bytes()
    except OSError:
        return None
