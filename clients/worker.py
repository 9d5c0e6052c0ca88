"""The worker: the only code that opens images. Bytes of a request in, bytes of a reply out.

It trusts nobody: a request must be of the approved study, of a round that this study has, with the
task the study gives this role, and with exactly the tensors of the contract. A task is a pure
function of the request, the images and the site's secret.
"""

import logging
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch

from clients.dataset import Dataset
from clients.site import Site
from clients.tasks import runner
from clients.training import TaskContext
from common.contract import (
    EnrolReply,
    EnrolRequest,
    Refusal,
    TaskReply,
    TaskRequest,
    check_metrics,
    check_tensors,
    digest,
    pack,
    unpack,
)
from common.errors import ContractError, CrossProbeError
from common.networks import Networks
from common.study import Round, Study
from common.tasks import AnyTask

log = logging.getLogger("crossprobe.worker")

#: Bound on a received model's L2 norm: a trained one of 0.3 M parameters has about 50.
MAX_RECEIVED_NORM = 1e5


def software_version() -> str:
    """Return the installed version, or `0` when the code runs without being installed."""
    try:
        return version("crossprobe")
    except PackageNotFoundError:
        return "0"


class Worker:
    """One site's tasks in one study.

    Args:
        site: a checked site folder.
        study: the site's own, approved copy.
        secret: 32 bytes that never leave; all of the site's randomness is derived from them.
    """

    def __init__(self, site: Site, study: Study, secret: bytes) -> None:
        self.site, self.study, self.secret = site, study, secret
        self.study_hash = study.hash()
        self.rounds = list(study.rounds())
        self.networks = Networks(study)
        self.data = Dataset(site, study)

    def handle(self, payload: bytes, cancelled: Callable[[], bool] = lambda: False) -> bytes:
        """Answer a request. Whatever goes wrong, the reply is a refusal with a code, never a text from inside."""
        try:
            header, tensors = unpack(payload)
            if isinstance(header, EnrolRequest):
                self._check_study(header.study)
                return pack(self._enrol())
            if not isinstance(header, TaskRequest):
                raise ContractError("not-a-request", "expected an enrolment or a task")
            return self._run(header, tensors, digest(payload), cancelled)
        except ContractError as error:
            log.warning("%s: refused: %s", self.site.config.name, error)
            return pack(Refusal(code=error.code, message="the request breaks the contract; see the site's log"))
        except CrossProbeError as error:
            log.error("%s: %s", self.site.config.name, error)
            return pack(Refusal(code="site-error", message="the site's data do not fit the study; see its log"))
        except Exception:
            log.exception("%s: a task failed", self.site.config.name)
            return pack(Refusal(code="task-failed", message="the task failed at the site; see the site's log"))

    def _check_study(self, study_hash: str) -> None:
        if study_hash != self.study_hash:
            raise ContractError("other-study", "the request is of a study that this site did not approve")

    def _enrol(self) -> EnrolReply:
        policy = self.site.config.policy
        tested = len(self.site.patients("test", labelled=True)) >= policy.min_patients
        return EnrolReply(
            study=self.study_hash,
            site=self.site.config.name,
            role=self.site.config.role,
            patients=policy.declared_patients(len(self.site.patients("train"))),
            labelled_test=tested,
            software=software_version(),
        )

    def _run(self, header: TaskRequest, tensors: dict, request_digest: str, cancelled: Callable[[], bool]) -> bytes:
        round_, task = self._agreed(header)
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
                foreground_prior=header.foreground_prior,
                cancelled=cancelled,
            )
        )
        trained = self.networks.export(task.trains)
        updates = {name: value - tensors[name] for name, value in trained.items()}
        check_tensors(updates, self.networks.shapes(task.trains), max_norm=self.study.participation.max_norm)
        check_metrics(task.task, metrics)
        reply = TaskReply(
            study=self.study_hash,
            round=header.round,
            stage=header.stage,
            task=header.task,
            request=request_digest,
            metrics=metrics,
        )
        return pack(reply, updates)

    def _agreed(self, header: TaskRequest) -> tuple[Round, AnyTask]:
        """Return round and task as the site's own copy of the study has them, or refuse."""
        self._check_study(header.study)
        if header.round >= len(self.rounds):
            raise ContractError("unknown-round", f"the study has {len(self.rounds)} rounds")
        round_ = self.rounds[header.round]
        task = round_.stage.task_of(self.site.config.role)
        if task is None or (header.stage, header.task) != (round_.stage.name, task.task):
            raise ContractError("other-task", "the study gives this role another task in this round")
        return round_, task
