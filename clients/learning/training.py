"""What every training task shares: its context, the optimizer loop and the frames it draws."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from clients.data.dataset import Dataset, by_patient
from clients.data.frames import Frame
from clients.data.site import Split
from clients.governance.policy import Policy
from clients.learning.private_training import PrivateGradients
from common.networks import Networks
from common.seeds import derive, derive_seed
from common.study import Round, Study
from common.tasks import AnyTask, TrainingTask

#: A gradient of a larger norm is scaled down to it: early batches of few patients give rare spikes.
MAX_GRADIENT_NORM = 5.0

Metrics = dict[str, float]
#: Frames and the generator of their views -> one loss a frame, [B]; it draws no frames itself.
LossOf = Callable[[Sequence[Frame], Generator], Tensor]
#: Metric -> every value seen in the round; the mean of them is the metric.
Seen = defaultdict[str, list[float]]


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
    task: AnyTask
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
        and not that of other draws. Two studies of one name then draw the same patients and views at a site, which
        gives nothing away: no promise rests on these draws being fresh, and the secret still hides them.
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


def train(context: TaskContext, objective: Callable[[TaskContext, Seen], LossOf], split: Split = "train") -> Metrics:
    """Take a training task's steps on its objective and return its metrics.

    Args:
        objective: measures what has to be measured before training, and returns the loss to descend.
        split: whose patients are drawn.
    """
    task = context.task
    assert isinstance(task, TrainingTask)
    seen: Seen = defaultdict(list)
    loss = fit(context, task, trained_modules(context), objective(context, seen), split)
    return means(seen) | {"loss": loss}


def note(seen: Seen, metrics: Metrics) -> None:
    """Add measured numbers to what a round has seen."""
    for name, value in metrics.items():
        seen[name].append(value)


def means(seen: Seen) -> Metrics:
    """Return each metric as the mean of its values."""
    return {name: sum(values) / len(values) for name, values in seen.items()}


def learning_rate(context: TaskContext, task: TrainingTask, step: int) -> float:
    """Return the rate of a step: a warm-up in each round under a cosine over the stage."""
    warm = min(1.0, (step + 1) / (task.warmup_steps + 1))
    cosine = 0.5 * (1 + math.cos(math.pi * context.round.learning_rate_progress(task, step)))
    # The cosine ends at a tenth: a stage's last rounds still have to move the average.
    return task.learning_rate * warm * (0.1 + 0.9 * cosine)


def fit(
    context: TaskContext,
    task: TrainingTask,
    trained: Iterable[nn.Module],
    loss_of: LossOf,
    split: Split = "train",
) -> float:
    """Take the task's steps with a fresh AdamW and return the mean loss.

    Under privacy the gradients are clipped by patient and noised; AdamW, its decay and the average of the weights
    only see these, so that the update keeps their guarantee (post-processing). The mean loss has none and must not
    leave.

    Args:
        trained: modules whose parameters move; all others stay.
        split: whose patients are drawn.

    Raises:
        StudyError: under privacy, if a module or the loss cannot be made private.
    """
    context.networks.requires_grad_(False)
    modules = [module.requires_grad_(True) for module in trained]
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=context.study.weight_decay, fused=True)
    gradients = _gradients(context, modules, parameters, loss_of, split)
    average = [p.detach().clone() for p in parameters] if task.average else []
    total = 0.0
    for step in range(task.steps):
        if context.cancelled():
            raise TaskCancelled
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(context, task, step)
        optimizer.zero_grad(set_to_none=True)
        total += gradients(step)
        optimizer.step()
        follow(average, parameters, averaging(task.average, step))
    context.networks.requires_grad_(False)
    for parameter, own in zip(parameters, average or parameters, strict=True):
        parameter.copy_(own)
    return total / task.steps


def averaging(decay: float, step: int) -> float:
    """Return the decay of a running average after optimizer step `step`: less at first, so that it has no old start."""
    return min(decay, (step + 1) / (step + 10))


@torch.no_grad()
def follow(average: Iterable[Tensor], current: Iterable[Tensor], decay: float) -> None:
    """Move a running average of tensors towards the current ones: `average = decay * average + (1 - decay) * current`.

    An empty average stays empty.
    """
    for own, now in zip(average, current, strict=False):
        own.mul_(decay).add_(now.detach(), alpha=1 - decay)


def _gradients(
    context: TaskContext, modules: list[nn.Module], parameters: list[nn.Parameter], loss_of: LossOf, split: Split
) -> Callable[[int], float]:
    """Return what fills the parameters' gradients for a step, and returns its loss."""
    study = context.study
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


def trained_modules(context: TaskContext) -> list[nn.Module]:
    """Return the modules of the components that the task trains."""
    return [context.networks.component(name) for name in context.task.trains]


def trained_branches(context: TaskContext) -> list[str]:
    """Return the branches of which the task trains any part, in a fixed order."""
    parts = context.task.trains
    return [b for b in ("source_branch", "target_branch") if any(p.startswith(b) for p in parts)]
