"""The worker: the only code that opens images. Bytes of a request in, bytes of a reply out.

It trusts nobody: a request must be of the approved study, of a round that this study has, with the
task the study gives this role, and with exactly the tensors of the contract. A task is a pure
function of the request, the images and the site's secret.
"""

import logging
from collections.abc import Callable

import torch

from clients.data.dataset import Dataset
from clients.data.site import Site, Split
from clients.governance.accountant import Accountant, charge_of, charges_of
from clients.learning import runner
from clients.learning.training import TaskCancelled, TaskContext
from clients.node.refusals import refusal
from common.contract import (
    EnrolReply,
    EnrolRequest,
    TaskReply,
    TaskRequest,
    Tensors,
    check_metrics,
    check_tensors,
    digest,
    pack,
    unpack,
)
from common.errors import ContractError, CrossProbeError, SiteStateError
from common.networks import Networks
from common.seeds import derive
from common.study import Round, Study
from common.tasks import AnyTask, TrainingTask
from common.version import software_version

log = logging.getLogger("crossprobe.worker")

#: Bound on a received model's L2 norm: a trained one of 0.3 M parameters has about 50.
MAX_RECEIVED_NORM = 1e5


def enrolment(site: Site, study: Study) -> EnrolReply:
    """Return what a site declares about itself in a study that it approved."""
    policy = site.config.policy
    evaluates = study.privacy is None or study.privacy.evaluation == "outside"
    return EnrolReply(
        study=study.hash(),
        site=site.config.name,
        role=site.config.role,
        patients=policy.declared_in(study, len(site.patients("train"))),
        labelled_test=evaluates and len(site.patients("test", labelled=True)) >= policy.min_patients,
        software=software_version(),
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
    """

    def __init__(
        self,
        site: Site,
        study: Study,
        secret: bytes,
        accountant: Accountant | None = None,
        data: Dataset | None = None,
        device: str = "cpu",
    ) -> None:
        self.site, self.study, self.secret = site, study, secret
        self.accountant = Accountant() if accountant is None else accountant
        self._simulated = accountant is None
        self.study_hash = study.hash()
        self.rounds = list(study.rounds())
        self.networks = Networks(study, device, site.config.mixed_precision)
        self.data = Dataset(site, study) if data is None else data

    def handle(
        self, payload: bytes, cancelled: Callable[[], bool] = lambda: False, *, ledger_head: str | None = None
    ) -> bytes:
        """Answer a request. Whatever goes wrong, the reply is a refusal with a code, never a text from inside.

        Args:
            cancelled: is asked between steps; when it says True the task stops and the reply is `cancelled`.
            ledger_head: for the reply to carry, see `common.contract.TaskReply`.
        """
        try:
            return self._answer(payload, cancelled, ledger_head)
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
        return pack(refusal(code, ledger_head=ledger_head))

    def _answer(self, payload: bytes, cancelled: Callable[[], bool], ledger_head: str | None) -> bytes:
        header, tensors = unpack(payload)
        if isinstance(header, EnrolRequest):
            self._check_study(header.study)
            return pack(enrolment(self.site, self.study))
        if not isinstance(header, TaskRequest):
            raise ContractError("not-a-request", "expected an enrolment or a task")
        round_, task = self._agreed(header)
        policy = self.site.config.policy
        request = digest(payload)
        charge = charge_of(self.study, round_, task, derive(self.secret, "charge", request).hex())
        if charge is not None and self.study.privacy is not None:
            if self._simulated:
                earlier = charges_of(self.study, self.site.config.role)
                self.accountant = Accountant(charges=(c for c in earlier if c.round < charge.round))
            self.accountant.check(charge, self.study.privacy, policy.epsilon_cap)
        metrics, updates = self._run(round_, task, tensors, request, header.foreground_prior, cancelled)
        reply = TaskReply(
            study=self.study_hash,
            round=header.round,
            stage=header.stage,
            task=header.task,
            request=request,
            metrics=policy.permitted(metrics),
            ledger_head=ledger_head,
        )
        sealed = pack(reply, updates)
        policy.check_bytes(len(sealed))
        if charge is not None:
            self.accountant.spend(charge)
        elif self.study.privacy is None:
            self.accountant.expose(self.study_hash)
        return sealed

    def _check_study(self, study_hash: str) -> None:
        if study_hash != self.study_hash:
            raise ContractError("other-study", "the request is of a study that this site did not approve")

    def _run(
        self,
        round_: Round,
        task: AnyTask,
        tensors: Tensors,
        request: str,
        prior: float | None,
        cancelled: Callable[[], bool],
    ) -> tuple[dict[str, float], Tensors]:
        """Return a task's metrics and updates, checked."""
        shapes = self.networks.shapes(self.study.components_of(task))
        check_tensors(tensors, shapes, max_norm=MAX_RECEIVED_NORM)
        torch.set_num_threads(self.site.config.threads)
        self.networks.load(tensors)
        metrics = runner(task.task)(
            TaskContext(
                study=self.study,
                round=round_,
                task=task,
                networks=self.networks,
                data=self.data,
                policy=self.site.config.policy,
                secret=self.secret,
                request=request,
                foreground_prior=prior,
                cancelled=cancelled,
            )
        )
        trained = self.networks.export(task.trains)
        updates = {name: value - tensors[name] for name, value in trained.items()}
        check_tensors(updates, self.networks.shapes(task.trains), max_norm=self.study.participation.max_norm)
        metrics = self._backed(task, metrics)
        check_metrics(task.task, metrics)
        return metrics, updates

    def _backed(self, task: AnyTask, metrics: dict[str, float]) -> dict[str, float]:
        """Leave out what a training task measured on fewer patients than the policy asks for, or under privacy.

        No noise is in these numbers, so under privacy none of them leaves. `val_dice`, `score` and the
        evaluation's numbers look at patients of their own and see to it.
        """
        split: Split = "calibrate" if task.task == "infuse" else "train"
        if not isinstance(task, TrainingTask):
            return metrics
        if self.study.privacy is not None:
            return {}
        if len(self.site.patients(split)) >= self.site.config.policy.min_patients:
            return metrics
        return {name: value for name, value in metrics.items() if name == "val_dice"}

    def _agreed(self, header: TaskRequest) -> tuple[Round, AnyTask]:
        """Return round and task as the site's own copy of the study has them, or refuse."""
        self._check_study(header.study)
        if header.round >= len(self.rounds):
            raise ContractError("unknown-round", f"the study has {len(self.rounds)} rounds")
        round_ = self.rounds[header.round]
        task = round_.stage.task_of(self.site.config.role)
        if task is None or (header.stage, header.task) != (round_.stage.name, task.task):
            raise ContractError("other-task", "the study gives this role another task in this round")
        self.site.config.policy.check_request(self.study, task)
        return round_, task
