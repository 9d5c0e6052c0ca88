"""What every training task shares: its context, the optimizer loop and the frames it draws."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from clients.dataset import Dataset
from clients.policy import Policy
from common.networks import Networks
from common.seeds import derive_seed
from common.study import Round, Study
from common.tasks import AnyTask, TrainingTask

#: A gradient of a larger norm is scaled down to it: early batches of few patients give rare spikes.
MAX_GRADIENT_NORM = 5.0

Metrics = dict[str, float]


@dataclass(frozen=True)
class TaskContext:
    """All that a task is a function of.

    Attributes:
        networks: hold the components of the request; a task trains them in place.
        secret: the site's; with study, site, round and task it gives all randomness.
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
    foreground_prior: float | None = None
    cancelled: Callable[[], bool] = lambda: False

    def generator(self, purpose: str) -> Generator:
        """Return a generator that no one without the site's secret can predict."""
        words = (
            self.study.hash(),
            self.data.site.config.name,
            self.round.index,
            self.task.task,
            purpose,
        )
        return torch.Generator().manual_seed(derive_seed(self.secret, *words))


class TaskCancelled(Exception):
    """The caller is gone; nothing is sent."""


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
    step_losses: Callable[[int], Tensor],
) -> float:
    """Take the task's steps with a fresh AdamW and return the mean loss.

    Args:
        trained: modules whose parameters move; all others stay.
        step_losses: step -> one loss per image, [B].
    """
    context.networks.requires_grad_(False)
    parameters = [p for module in trained for p in module.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=context.study.weight_decay)
    total = 0.0
    for step in range(task.steps):
        if context.cancelled():
            raise TaskCancelled
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(context, task, step)
        loss = step_losses(step).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        total += float(loss.detach())
    context.networks.requires_grad_(False)
    return total / task.steps


def trained_modules(context: TaskContext) -> list[nn.Module]:
    """Return the modules of the components that the task trains."""
    return [context.networks.component(name) for name in context.task.trains]


def trained_branches(context: TaskContext) -> list[str]:
    """Return the branches of which the task trains any part, in a fixed order."""
    parts = context.task.trains
    return [b for b in ("source_branch", "target_branch") if any(p.startswith(b) for p in parts)]
