"""What a hostile coordinator may do: propose a valid study, send weights of his choice, and read the replies."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from common.components import ROLES, Tensors
from common.errors import StudyError
from common.messages import Refusal, TaskReply, TaskRequest, pack, unpack
from common.networks import initial_networks
from common.stage import Round
from common.study import Study, parse_study
from common.tasks import Task, TrainingTask

#: No augmentation: valid, and what is rebuilt then is the image itself.
STILL = {"flip": False, "scale": 0.0, "rotation_deg": 0.0, "shift": 0.0, "gamma": 0.0}
#: Decoders alone are trained, so that the features that carry the code do not move.
TASKS: dict[str, dict[str, Any]] = {
    "self_supervise": {"trains": ["mim_decoder"], "mask_ratio": 0.99, "mask_block": 2, "contrast_weight": 0.0},
    "supervise": {"trains": ["source_branch.decoder"]},
}


class Site(Protocol):
    """Whoever answers messages, e.g. `clients.node.worker.Worker`."""

    def handle(self, payload: bytes) -> bytes:
        """Answer the bytes of a message."""


class Refused(Exception):
    """The site refused; `code` says why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def hostile_study(
    task: str,
    *,
    batch_size: int = 1,
    steps: int = 1,
    rounds: int = 1,
    size: int = 64,
    seed: int = 0,
    network: Mapping[str, Any] | None = None,
    privacy: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Study:
    """Return a valid study of one task whose updates say as much of an image as they can.

    Args:
        task: `self_supervise` (asked of targets) or `supervise` (asked of sources).
        privacy: the section of the study; None: none.
        settings: of the task, instead of those in `TASKS`.
    """
    role = "source" if task == "supervise" else "target"
    content: dict[str, Any] = {
        "name": "audit",
        "seed": seed,
        "image": {"size": size, "geometry": "letterbox", "spacing_mm": None},
        "augmentation": STILL,
        "batch_size": batch_size,
        "weight_decay": 0.0,
        "stages": [
            {
                "name": "audit",
                "rounds": rounds,
                role: {"task": task, "steps": steps, "warmup_steps": 0, **TASKS[task], **settings},
            }
        ],
    }
    content |= {"network": dict(network)} if network else {}
    content |= {"privacy": dict(privacy)} if privacy else {}
    return parse_study(content, origin="audit")


def training_task(study: Study) -> TrainingTask:
    """Return the task of a study's first stage, of whichever role."""
    for role in ROLES:
        task = study.stages[0].task_of(role)
        if isinstance(task, TrainingTask):
            return task
    raise StudyError("expected a study that starts with a training task, found none")


def ask(site: Site, study: Study, round_: Round, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Return a site's updates in a round under the given weights; what they do not name is as the seed gives it.

    Raises:
        Refused: with the site's code.
    """
    return _replied(site, study, round_, training_task(study), tensors)[1]


def ask_numbers(site: Site, study: Study, round_: Round, task: Task, tensors: Tensors) -> Mapping[str, float]:
    """Return the numbers of a site's reply to a task under the given weights, see `ask`.

    Raises:
        Refused: with the site's code.
    """
    return _replied(site, study, round_, task, tensors)[0].metrics


def _replied(
    site: Site, study: Study, round_: Round, task: Task, tensors: Mapping[str, np.ndarray]
) -> tuple[TaskReply, Tensors]:
    sent = initial_networks(study).export(study.components_of(task))
    sent |= {name: np.asarray(x, np.float32) for name, x in tensors.items() if name in sent}
    header = TaskRequest(study=study.hash(), round=round_.index, stage=round_.stage.name, task=task.task)
    reply, updates = unpack(site.handle(pack(header, sent)))
    if isinstance(reply, Refusal):
        raise Refused(reply.code)
    assert isinstance(reply, TaskReply)
    return reply, updates
