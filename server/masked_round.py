"""A round's second half where updates are summed under masks: the sites that sent help to lay the sums bare.

Beside `server.rounds` as `common.masking` is beside the contract: without secure aggregation it does nothing.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from common.components import Role, Tensors
from common.contract import ROUNDING, check_norm
from common.errors import ContractError
from common.fixed_point import from_fixed
from common.messages import Message, TaskReply, TaskRequest, UnmaskReply
from server.aggregation.masked_sum import MaskedSum
from server.algorithm import Reply, RoleSum
from server.history import SiteRecord
from server.state import ServerState
from server.survivors import Survivors
from server.transport import Failure, Transport, header_of

log = logging.getLogger("crossprobe.server")

#: Between two questions to a site that sent its update and does not help, in seconds.
ASK_AGAIN_S = 2.0


class MaskedRound:
    """The sums of one round's roles, and the replies that wait for them.

    Args:
        requests: of all sites.
        max_norm: the study's bound on an update.
        survivors: whose sums are to be laid bare, where an earlier attempt settled it.
    """

    def __init__(
        self, state: ServerState, requests: Mapping[str, Message], max_norm: float, survivors: Survivors
    ) -> None:
        self.state, self.max_norm, self.survivors = state, max_norm, survivors
        self._sums: dict[Role, MaskedSum] = {}
        self._waiting: dict[str, TaskReply] = {}
        for site, request in requests.items():
            if isinstance(request.header, TaskRequest) and request.header.masking is not None:
                role = state.participants[site].role
                self._sums.setdefault(role, MaskedSum(request.header.masking, request.sha256))

    def wants(self, site: str) -> bool:
        """Whether a site is to be asked for its update: not if the sum was settled without it."""
        role = self.state.participants[site].role
        settled = self.survivors.of(role, self._sums[role].request) if role in self._sums else None
        return settled is None or site in settled

    def keep(self, site: str, header: TaskReply, updates: Tensors) -> bool:
        """Keep a reply until its role's sum is laid bare, if it is of a sum. Raises ContractError `bad-share`."""
        role = self.state.participants[site].role
        if role not in self._sums:
            return False
        self._sums[role].add(site, updates, header.shares)
        self._waiting[site] = header
        return True

    def unmasked(
        self, transport: Transport, deadline_s: float, sites: dict[str, SiteRecord]
    ) -> Iterator[Reply | RoleSum]:
        """Yield the replies that were kept and the sums of their updates, role by role as far as they can be had.

        Args:
            deadline_s: how long the sites' help is waited for.
            sites: their records, to which what travels is added, and why a sum could not be had.
        """
        for role, total in self._sums.items():
            try:
                yield from self._laid_bare(role, total, transport, deadline_s, sites)
            except ContractError as error:
                log.warning("the %s sites' updates could not be summed: %s", role, error)
                for site in total.arrived:
                    if sites[site].status == "ok":
                        sites[site] = replace(sites[site], status="unused", detail=str(error), metrics={})

    def _laid_bare(
        self, role: Role, total: MaskedSum, transport: Transport, deadline_s: float, sites: dict[str, SiteRecord]
    ) -> Iterator[Reply | RoleSum]:
        settled = self.survivors.of(role, total.request)
        if settled is not None and settled != total.arrived:
            raise ContractError("unmask-short", "an update is missing that this round's sum was settled with")
        if len(total.arrived) < total.least:
            raise ContractError(
                "unmask-short",
                f"{len(total.arrived)} updates of {role} sites came, a sum under masks needs {total.least}",
            )
        self.survivors.settle(role, total.request, total.arrived)
        deadline = time.monotonic() + deadline_s
        while wanting := total.wanting():
            self._ask(total, wanting, transport, max(1.0, deadline - time.monotonic()), sites)
            if total.wanting():
                if time.monotonic() + ASK_AGAIN_S > deadline:
                    raise ContractError("unmask-short", f"no help with the sum from {', '.join(total.wanting())}")
                time.sleep(ASK_AGAIN_S)
        patients = sum(self.state.participants[site].patients for site in total.arrived)
        summed = RoleSum(role, total.total(), patients)
        # Of updates within the bound no mean is beyond it: a seed or a masked update of noise would end the study
        mean = {name: from_fixed(x, patients) for name, x in summed.total.items()}
        try:
            check_norm(mean, self.max_norm * (1 + ROUNDING))
        except ContractError as error:
            raise ContractError(
                error.code,
                f"the sum of {len(total.arrived)} {role} sites is none that honest updates come to: one spoiled it. "
                "If it comes again, unregister whose it is, and have the others approve again with --restart",
            ) from None
        for site in total.arrived:
            yield Reply(site, self._waiting[site].metrics, {})
        yield summed

    def _ask(
        self, total: MaskedSum, wanting: list[str], transport: Transport, left_s: float, sites: dict[str, SiteRecord]
    ) -> None:
        questions = {site: Message.of(total.question(site, self._waiting[site])) for site in wanting}
        payloads = {site: question.payload for site, question in questions.items()}
        for site, payload in transport.exchange(payloads, lambda site: self._waiting[site].task, left_s):
            try:
                answer = header_of(payload)
                if not isinstance(answer, UnmaskReply):
                    raise ContractError("not-a-reply", "expected help with a sum")
                if answer.request != questions[site].sha256:
                    raise ContractError("other-request", "the answer is to another question")
                total.helped(site, answer)
            except ContractError as error:
                log.warning("%s does not help with the sum: %s", site, error)
            came = 0 if isinstance(payload, Failure) else len(payload)
            record = sites[site]
            to = record.bytes_to + len(payloads[site])
            sites[site] = replace(record, bytes_to=to, bytes_from=record.bytes_from + came)
