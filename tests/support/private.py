"""Studies with a privacy section, and a look at the gradients that they train with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from tiny import request, study
from torch import Generator, Tensor, nn

from clients.data.dataset import by_patient
from clients.data.frames import Frame
from clients.learning.private_training import PrivateGradients
from clients.learning.training import Objective, Outcome, TaskContext
from clients.node.worker import Worker
from common.components import Role
from common.privacy import Privacy
from common.study import Study
from common.tasks import TrainingTask

ENCODER = ["target_branch.encoder", "mim_decoder", "projector"]
SUPERVISE = {"task": "supervise", "trains": ["source_branch"], "steps": 2}
SELF_SUPERVISE = {"task": "self_supervise", "trains": ENCODER, "steps": 2}
SETTINGS = {"nominal_patients": 8, "max_gradient_norm": 0.5, "delta": 1e-3, "epsilon_cap": 1000.0}


def private(
    *, rounds: int = 2, norm: str = "group", name: str = "private", contrast_weight: float = 0.1, **settings: Any
) -> Study:
    """A private study of one stage, `pretrain`, with both tasks that it may have."""
    target = SELF_SUPERVISE | {"contrast_weight": contrast_weight}
    return study(
        name=name,
        network={"features": [8] * 6, "norm": norm},
        privacy=SETTINGS | settings,
        stages=[{"name": "pretrain", "rounds": rounds, "source": SUPERVISE, "target": target}],
    )


@dataclass
class Seen:
    """What a task hands to `fit`."""

    context: TaskContext
    modules: list[nn.Module]
    loss_of: Callable[[Sequence[Frame], Generator], Tensor]

    def gradients(self, key: bytes = b"k" * 32, without: str = "", **changes: Any) -> PrivateGradients:
        """The private gradients of the task, of all patients but one, under changed settings."""
        study = self.context.study
        assert study.privacy is not None
        for module in self.modules:
            module.requires_grad_(True)
        patients = by_patient(self.context.data.site.frames_of("train"))
        patients.pop(without, None)
        return PrivateGradients(
            Privacy.model_validate(study.privacy.model_dump() | changes),
            sample_rate=study.privacy.sample_rate(study.batch_size),
            patients=patients,
            modules=self.modules,
            loss_of=self.loss_of,
            key=key,
        )


def seen(worker: Worker, role: Role, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What the task of a worker's first round would train with."""
    found: list[Seen] = []

    def fit(context: TaskContext, task: TrainingTask, objective: Objective) -> Outcome:
        modules = [context.networks.component(name) for name in task.trains]
        found.append(Seen(context, modules, lambda *batch: objective.loss(*batch).per_frame))
        return Outcome({}, drawn=1000)

    task = worker.study.stages[0].task_of(role)
    assert task is not None
    with monkeypatch.context() as patch:
        patch.setattr("clients.learning.training.fit", fit)
        worker.handle(request(worker.study, "pretrain", role))
    return found[0]
