"""The worker: the only code that opens images. A request in, a reply out.

It trusts nobody: a request must be of the approved study, of a round that this study has, with the
task the study gives this role, and with exactly the tensors of the contract. A task is a pure
function of the request, the images and the site's secret.
"""

import logging
from collections.abc import Callable, Mapping
from functools import cached_property

import torch

from clients.data.dataset import Dataset
from clients.data.site import Site
from clients.governance.accountant import Accountant, charge_of, charges_of
from clients.governance.cohorts import Counting, everyone
from clients.governance.received import Received
from clients.learning.plausibility import Plausibility
from clients.learning.training import TaskCancelled, TaskContext, perform
from clients.learning.travel import Travel
from clients.node.masking import Masker
from clients.node.refusals import ROUND_SPENT, refusal
from common.components import Tensors
from common.contract import MAX_MODEL_NORM, check_metrics, check_tensors
from common.errors import ContractError, CrossProbeError, SiteStateError
from common.fixed_point import check_room
from common.messages import (
    EnrolReply,
    EnrolRequest,
    Masking,
    Message,
    TaskReply,
    TaskRequest,
    UnmaskReply,
    UnmaskRequest,
)
from common.networks import Networks
from common.seeds import derive
from common.signing import site_key
from common.stage import Round
from common.study import Study
from common.tasks import Task, TrainingTask
from common.version import software_version

log = logging.getLogger("crossprobe.worker")


def evaluates(site: Site, study: Study, counting: Counting = everyone) -> bool:
    """Return whether a site has enough labelled test patients for the evaluation of a study, and the study has one."""
    if not study.may_evaluate:
        return False
    return len(counting("test", site.patients("test", labelled=True), None)) >= site.config.policy.min_patients


def enrolment(
    request: Message, site: Site, study: Study, masker: Masker | None = None, counting: Counting = everyone
) -> EnrolReply:
    """Return what a site declares about itself in a study that it approved.

    Args:
        masker: the site's, where its updates are summed under masks.
        counting: says who of its patients is in numbers.
    """
    return EnrolReply(
        study=study.hash(),
        request=request.sha256,
        site=site.config.name,
        role=site.config.role,
        patients=site.declared_in(study),
        labelled_test=evaluates(site, study, counting),
        software=software_version(),
        mask_key=masker.mask_key() if masker and site.config.role in study.secure_aggregation else None,
    )


class Worker:
    """One site's tasks in one study.

    Args:
        site: a checked site folder.
        study: the site's own, approved copy.
        secret: 32 bytes that never leave; all of the site's randomness is derived from them.
        accountant: of the site's privacy budget. None (simulations, whose processes come and go) has for
            each request one in memory, as if the site had answered all earlier rounds of this study once.
        data: the site's images on the study's grid, where another worker of the process has them already.
        device: where the networks compute, see `common.networks.Networks`.
        networks, plausibility: the study's, where another worker of the process has them already; a request loads all
            that its task uses, so workers that answer one after the other may share them.
        masker: for studies with secure aggregation; None (simulations) has one whose sites take each other's word.
        patients: as declared; None: as the site's folder has them now.
        counting: says who is in numbers over many patients (`clients.governance.cohorts`); by default everyone is
            (simulations, which keep nothing).
    """

    def __init__(
        self,
        site: Site,
        study: Study,
        secret: bytes,
        accountant: Accountant | None = None,
        data: Dataset | None = None,
        device: str = "cpu",
        networks: Networks | None = None,
        plausibility: Plausibility | None = None,
        masker: Masker | None = None,
        patients: int | None = None,
        counting: Counting = everyone,
    ) -> None:
        self.site, self.study, self.secret = site, study, secret
        self.accountant = Accountant() if accountant is None else accountant
        self._simulated = accountant is None
        self.study_hash = study.hash()
        self.rounds = study.rounds()
        self.networks = networks or Networks(study, device, site.config.mixed_precision)
        self._known_plausibility = plausibility
        self.data = Dataset(site, study, counting) if data is None else data
        self.masker = masker or Masker(site.config.name, self.study_hash, secret, site_key(secret))
        declared = site.declared_in(study)
        self.patients = declared if patients is None else patients

    def handle(self, payload: bytes) -> bytes:
        """Answer the bytes of a message, for whoever has only these; see `answer`."""
        try:
            request = Message.parse(payload)
        except ContractError as error:
            log.warning("%s: refused: %s", self.site.config.name, error)
            return Message.of(refusal(error.code)).payload
        return self.answer(request).payload

    def answer(
        self,
        request: Message,
        cancelled: Callable[[], bool] = lambda: False,
        *,
        ledger_head: str | None = None,
        frozen: Mapping[str, float] | None = None,
        received: Received | None = None,
        begin: Callable[[], None] = lambda: None,
    ) -> Message:
        """Answer a request. Whatever goes wrong, the reply is a refusal with a code, never a text from inside.

        Args:
            cancelled: is asked between steps; when it says True the task stops and the reply is `cancelled`.
            ledger_head: for the reply to carry, see `common.messages.TaskReply`.
            frozen: numbers of this study that were sent before and must not change.
            received: what this site was sent before; None (simulations, which keep nothing): nobody looks how far
                weights have come since.
            begin: is told when all checks are passed and the privacy is paid, before the first image is looked at.
        """
        try:
            if isinstance(request.header, EnrolRequest):
                self._check_study(request.header.study)
                return Message.of(enrolment(request, self.site, self.study, self.masker, self.data.counting))
            if isinstance(request.header, UnmaskRequest):
                self._check_study(request.header.study)
                return self.unmask(request, ledger_head=ledger_head)
            if not isinstance(request.header, TaskRequest):
                raise ContractError("not-a-request", "expected an enrolment or a task")
            return self._do(request, request.header, cancelled, ledger_head, frozen or {}, received, begin)
        except ContractError as error:
            log.warning("%s: refused: %s", self.site.config.name, error)
            code = error.code
        except TaskCancelled:
            log.warning("%s: a task was stopped: whoever asked for it is gone", self.site.config.name)
            code = "cancelled"
        except CrossProbeError as error:
            log.error("%s: %s", self.site.config.name, error)
            code = "state-failed" if isinstance(error, SiteStateError) else "site-error"
        except Exception:
            log.exception("%s: a task failed", self.site.config.name)
            code = "task-failed"
        return Message.of(refusal(code, ledger_head=ledger_head))

    def unmask(self, request: Message, *, ledger_head: str | None = None) -> Message:
        """Return this site's part in laying bare the sum of a round. Raises ContractError as `Masker.reveal` does."""
        header = request.header
        assert isinstance(header, UnmaskRequest)
        shares, seeds = self.masker.reveal(header)
        return Message.of(
            UnmaskReply(
                study=header.study,
                round=header.round,
                task=header.task,
                request=request.sha256,
                shares=shares,
                seeds=seeds,
                ledger_head=ledger_head,
            )
        )

    def _do(
        self,
        request: Message,
        header: TaskRequest,
        cancelled: Callable[[], bool],
        ledger_head: str | None,
        frozen: Mapping[str, float],
        received: Received | None,
        begin: Callable[[], None],
    ) -> Message:
        """Return the reply to a task, once everything that it needs was checked."""
        round_, task = self._agreed(header)
        policy, privacy = self.site.config.policy, self.study.privacy
        self._check_masking(task, header.masking)
        shapes = self.networks.shapes(self.study.components_of(task))
        check_tensors(request.tensors, shapes, max_norm=MAX_MODEL_NORM)
        torch.set_num_threads(self.site.config.threads)
        self.networks.load(request.tensors)
        self._check_plausible(request, round_, task, received)
        charge = charge_of(
            self.study, self.study_hash, round_, task, derive(self.secret, "charge", request.sha256).hex()
        )
        if charge is not None and privacy is not None:
            if self._simulated:
                earlier = charges_of(self.study, self.site.config.role)
                self.accountant = Accountant(charges=(c for c in earlier if c.round < charge.round))
            self.accountant.check(charge, privacy, policy.epsilon_cap)
            # Before the work, whatever becomes of it: that a round fails, or how, is a look at the patients too.
            self.accountant.spend(charge)
        elif privacy is None:
            self.accountant.expose(self.study_hash)
        begin()
        context = TaskContext(
            study=self.study,
            round=round_,
            task=task,
            networks=self.networks,
            data=self.data,
            policy=policy,
            secret=self.secret,
            request=request.sha256,
            foreground_prior=header.foreground_prior,
            cancelled=cancelled,
        )
        try:
            metrics, updates = self._performed(context, request.tensors, frozen)
            shares: dict[str, str] = {}
            if header.masking is not None:
                updates, shares = self.masker.masked(updates, self.patients, header.masking, request.sha256)
            reply = Message.of(
                TaskReply(
                    study=self.study_hash,
                    round=header.round,
                    stage=header.stage,
                    task=header.task,
                    request=request.sha256,
                    metrics=metrics,
                    ledger_head=ledger_head,
                    shares=shares,
                ),
                updates,
            )
            policy.check_bytes(len(reply.payload))
        except TaskCancelled:
            raise  # the caller's own doing, and asked again the very same request has the very same end
        except Exception as error:
            if charge is None:
                raise
            log.warning("%s: a private round came to nothing: %s", self.site.config.name, error)
            raise ContractError(ROUND_SPENT, "the round's privacy is spent, and no update came of it") from None
        return reply

    def _performed(
        self, context: TaskContext, received: Tensors, frozen: Mapping[str, float]
    ) -> tuple[dict[str, float], Tensors]:
        """Return the numbers and updates of a task, as far as contract and policy let them leave."""
        task, policy, privacy = context.task, self.site.config.policy, self.study.privacy
        outcome = perform(context)
        if isinstance(task, TrainingTask):
            policy.check_drawn(self.study, outcome.drawn)
        trained = self.networks.export(task.trains)
        updates = {name: value - received[name] for name, value in trained.items()}
        check_tensors(updates, self.networks.shapes(task.trains), max_norm=self.study.participation.max_norm)
        # No noise is in a training task's numbers, so under privacy none of them leaves; and no number of too few.
        silent = privacy is not None and isinstance(task, TrainingTask)
        backed = (
            {} if silent else {n: m.value for n, m in outcome.measured.items() if m.patients >= policy.min_patients}
        )
        check_metrics(task.task, backed)
        rounded = {name: frozen.get(name, task.metrics[name].rounded(value)) for name, value in backed.items()}
        return policy.permitted(rounded), updates

    @cached_property
    def _plausibility(self) -> Plausibility:
        # seconds of a network's making, which an enrolment need not wait
        return self._known_plausibility or Plausibility(self.study)

    @cached_property
    def _travel(self) -> Travel:
        return Travel(self.study, self._plausibility.initial)

    def _check_plausible(self, request: Message, round_: Round, task: Task, received: Received | None) -> None:
        try:
            if received is not None:
                self._travel.check(request.tensors, round_, task, received)
            self._plausibility.check(request.tensors, self.networks, self.study.components_of(task), request.sha256)
        except ContractError as error:
            if self.site.config.policy.implausible_weights == "refuse":
                raise
            log.warning("%s: %s", self.site.config.name, error)

    def _check_masking(self, task: Task, masking: Masking | None) -> None:
        """Check before the work that an update is asked as the study says, bare or under masks of enough sites."""
        if (masking is not None) != self.study.masks(task, self.site.config.role):
            raise ContractError("other-masking", "the study says whether this update is summed under masks")
        if masking is not None:
            fewest = self.study.participation.quorum[self.site.config.role]  # what the approval's promise stands on
            if len(masking.keys) < fewest:
                raise ContractError("too-few-summed", f"{len(masking.keys)} sites are asked, the study says {fewest}")
            check_room(self.study.participation.max_norm, masking.patients)
            self.site.config.policy.check_summed(self.masker.check(masking))

    def _check_study(self, study_hash: str) -> None:
        if study_hash != self.study_hash:
            raise ContractError("other-study", "the request is of a study that this site did not approve")

    def _agreed(self, header: TaskRequest) -> tuple[Round, Task]:
        """Return round and task as the site's own copy of the study has them, or refuse."""
        self._check_study(header.study)
        if header.round >= len(self.rounds):
            raise ContractError("unknown-round", f"the study has {len(self.rounds)} rounds")
        round_ = self.rounds[header.round]
        task = round_.stage.task_of(self.site.config.role)
        if task is None or (header.stage, header.task) != (round_.stage.name, task.task):
            raise ContractError("other-task", "the study gives this role another task in this round")
        self.site.config.policy.check_request(self.study, self.site.config.role, task)
        return round_, task
