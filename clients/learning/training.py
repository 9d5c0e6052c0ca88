"""What every task shares: its context, what it measures, and the optimizer's loop of those that train."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import ModuleType

import torch
from torch import Generator, Tensor, nn

from clients.data.dataset import Dataset, by_patient
from clients.data.frames import Frame
from clients.governance.policy import Policy
from clients.learning.private_training import PrivateGradients
from common.networks import Networks
from common.seeds import derive, derive_seed
from common.stage import Round
from common.study import Study
from common.tasks import Task, TrainingTask

#: A gradient of a larger norm is scaled down to it: early batches of few patients give rare spikes.
MAX_GRADIENT_NORM = 5.0


@dataclass(frozen=True)
class Measured:
    """A number, and how many different patients are really behind it: by these a site's policy judges it."""

    value: float
    patients: int


#: Metric -> what was measured.
Numbers = dict[str, Measured]


@dataclass(frozen=True)
class Outcome:
    """What a task measured, and for one that trains, how many different patients its steps really drew."""

    measured: Numbers
    drawn: int = 0


@dataclass(frozen=True)
class Loss:
    """What a step descends, and what it saw on the way.

    Attributes:
        per_frame: the loss of each frame, [B]; no term couples two frames.
        seen: metric -> its value on this batch.
    """

    per_frame: Tensor
    seen: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """What a training task descends.

    Attributes:
        loss: of frames, under views that come from the generator; it draws no frames itself.
        measured: of the received model, before any step.
    """

    loss: Callable[[Sequence[Frame], Generator], Loss]
    measured: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class TaskContext:
    """All that a task is a function of.

    Attributes:
        networks: hold the components of the request; a task trains them in place.
        secret: the site's; with study, site, round and task it gives all randomness.
        request: SHA-256 of the request; private randomness is another for every request.
        foreground_prior: mean foreground fraction at the source sites, in [0, 1], or None.
        cancelled: is asked between steps; when it says True the task stops with `TaskCancelled`.
    """

    study: Study
    round: Round
    task: Task
    networks: Networks
    data: Dataset
    policy: Policy
    secret: bytes
    request: str = ""
    foreground_prior: float | None = None
    cancelled: Callable[[], bool] = lambda: False

    def generator(self, purpose: str) -> Generator:
        """Return a generator that no one without the site's secret can predict, for draws that protect nobody.

        It follows the study's name and seed, not its settings: a setting that is changed must show its own effect
        and not that of other draws. A hospital gives two studies of one name and seed two secrets, see
        `clients.governance.state.State.study_secret`: on the same draws the difference of two updates would tell what
        neither does.
        """
        return torch.Generator().manual_seed(derive_seed(self.secret, self.study.name, *self._words(purpose)))

    def key(self, purpose: str) -> bytes:
        """Return 32 bytes that no one without the site's secret can predict, for this very study and request.

        For noise that protects patients. The same noise under two models, or under two studies of one name, would come
        off in the difference of the two replies.
        """
        return derive(self.secret, self.study.hash(), *self._words(purpose), self.request)

    def _words(self, purpose: str) -> tuple[str | int, ...]:
        round_ = (self.round.stage.name, self.round.index, self.task.task)
        return (self.study.seed, self.data.site.config.name, *round_, purpose)


class TaskCancelled(Exception):
    """The caller is gone; nothing is sent."""


def perform(context: TaskContext) -> Outcome:
    """Do what the task's module says, training the context's networks in place."""
    if isinstance(context.task, TrainingTask):
        objective = objective_of(context)
        outcome = fit(context, context.task, objective)
        return replace(outcome, measured=objective.measured | outcome.measured)
    measured: Numbers = _module(context.task).run(context)
    return Outcome(measured)


def objective_of(context: TaskContext) -> Objective:
    """Return the objective of a training task, for an optimizer's loop other than the site's own too."""
    objective: Objective = _module(context.task).objective(context)
    return objective


def _module(task: Task) -> ModuleType:
    return import_module(task.implementation or f"clients.learning.{task.task}")


def learning_rate(context: TaskContext, task: TrainingTask, step: int) -> float:
    """Return the rate of a step: a warm-up in each round under a cosine over the stage."""
    warm = min(1.0, (step + 1) / (task.warmup_steps + 1))
    return task.learning_rate * warm * annealed(context.round.learning_rate_progress(task, step))


def annealed(progress: float) -> float:
    """Return the share of a stage's rate that is left after `progress` of it, in [0, 1]: a cosine, 1 to a tenth."""
    # It ends at a tenth: a stage's last rounds still have to move the average.
    return 0.1 + 0.9 * (0.5 * (1 + math.cos(math.pi * progress)))


def fit(context: TaskContext, task: TrainingTask, objective: Objective) -> Outcome:
    """Take the task's steps with a fresh AdamW and return the mean loss and what the loss saw.

    Under privacy the gradients are clipped by patient and noised; AdamW, its decay and the average of the weights
    only see these, so that the update keeps their guarantee (post-processing). The mean loss has none and must not
    leave.

    Raises:
        StudyError: under privacy, if a module or the loss cannot be made private.
        TaskCancelled: between two steps, if the caller is gone.
    """
    context.networks.requires_grad_(False)
    modules = [context.networks.component(name).requires_grad_(True) for name in task.trains]
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=context.study.weight_decay, fused=True)
    seen: dict[str, list[float]] = defaultdict(list)
    drawn: set[str] = set()

    def loss_of(frames: Sequence[Frame], generator: Generator) -> Tensor:
        drawn.update(frame.patient for frame in frames)
        loss = objective.loss(frames, generator)
        for name, value in loss.seen.items():
            seen[name].append(value)
        return loss.per_frame

    gradients = _gradients(context, task, modules, parameters, loss_of)
    average = [p.detach().clone() for p in parameters] if task.average else []
    losses = []
    for step in range(task.steps):
        if context.cancelled():
            raise TaskCancelled
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(context, task, step)
        optimizer.zero_grad(set_to_none=True)
        losses.append(gradients(step))
        optimizer.step()
        follow(average, parameters, averaging(task.average, step))
    context.networks.requires_grad_(False)
    for parameter, averaged in zip(parameters, average or parameters, strict=True):
        parameter.copy_(averaged)
    means = {name: sum(values) / len(values) for name, values in {**seen, "loss": losses}.items()}
    return Outcome({name: Measured(mean, len(drawn)) for name, mean in means.items()}, len(drawn))


def averaging(decay: float, step: int) -> float:
    """Return the decay of a running average after optimizer step `step`: less at first, so that it has no old start."""
    return min(decay, (step + 1) / (step + 10))


@torch.no_grad()
def follow(average: Iterable[Tensor], current: Iterable[Tensor], decay: float) -> None:
    """Move a running average of tensors towards the current ones: `average = decay * average + (1 - decay) * current`.

    An empty average stays empty.
    """
    for averaged, now in zip(average, current, strict=False):
        averaged.mul_(decay).add_(now.detach(), alpha=1 - decay)


def _gradients(
    context: TaskContext,
    task: TrainingTask,
    modules: Sequence[nn.Module],
    parameters: Iterable[nn.Parameter],
    loss_of: Callable[[Sequence[Frame], Generator], Tensor],
) -> Callable[[int], float]:
    """Return what fills the parameters' gradients for a step, and returns its loss."""
    study, split = context.study, task.split
    assert split is not None
    if study.privacy is not None:
        return PrivateGradients(
            study.privacy,
            sample_rate=study.privacy.sample_rate(study.batch_size),
            patients=by_patient(context.data.site.frames_of(split)),
            modules=modules,
            loss_of=loss_of,
            key=context.key("privacy"),
        )
    generator = context.generator("views")

    def plain(_: int) -> float:
        loss = loss_of(context.data.draw(split, study.batch_size, generator), generator).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        return float(loss.detach())

    return plain
