"""What a study may turn, and how far: the settings by which a training can be made to give patients away.

An update of one step on one image, with weights made for it, IS that image. Steps, batch, masking, rates and
norms decide how far an update is from that, so each has a bound in the site's policy, and stands in plain words
on the page that a hospital approves. Bounds make such an attack dearer; only differential privacy rules it out.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.components import ROLES, Role
from common.stage import Stage
from common.study import Study
from common.tasks import Score, SelfSupervise, Task, TrainingTask

if TYPE_CHECKING:
    from clients.governance.policy import Policy


@dataclass(frozen=True)
class Limit:
    """A bound of the policy on a setting of a study.

    Attributes:
        key: of the policy.
        words: what the setting is, for a hospital.
        least: the bound is the least allowed value; else the largest.
        value: the setting in a task of a study, or None where the task has none.
        unless_private: differential privacy bounds the same, so that the limit falls away with it, see
            `clients.governance.policy.Policy.bounded`.
    """

    key: str
    words: str
    least: bool
    value: Callable[[Study, Task], float | None]
    unless_private: bool = False


@dataclass(frozen=True)
class Setting:
    """A limited setting of one task: its value in a study and the policy's bound on it."""

    key: str
    words: str
    value: float
    bound: float
    least: bool

    @property
    def allowed(self) -> bool:
        """Whether the value keeps the bound."""
        return self.value >= self.bound if self.least else self.value <= self.bound


def _draws(study: Study, task: Task) -> float | None:
    return task.steps * study.batch_size if isinstance(task, TrainingTask) else None


def _mask_ratio(study: Study, task: Task) -> float | None:
    return task.mask_ratio if isinstance(task, SelfSupervise) else None


def _mask_side(study: Study, task: Task) -> float | None:
    return task.mask_block / study.image.size if isinstance(task, SelfSupervise) else None


def _rate(study: Study, task: Task) -> float | None:
    return task.learning_rate if isinstance(task, TrainingTask) else None


def _decay(study: Study, task: Task) -> float | None:
    return study.weight_decay if isinstance(task, TrainingTask) else None


def _norm(study: Study, task: Task) -> float | None:
    return study.participation.max_norm if isinstance(task, TrainingTask) else None


def _travel(study: Study, task: Task) -> float | None:
    """The farthest of all that the task is sent, in any stage: what others trained before comes to it too."""
    if not isinstance(task, TrainingTask):
        return None
    return max(stage.travel(name) for stage in study.stages for name in study.components_of(task))


def _travel_ratio(study: Study, task: Task) -> float | None:
    """The way of a component that the task is sent over its own part in it; in others, over its own farthest."""
    if not isinstance(task, TrainingTask):
        return None
    found = []
    for stage, role in _stages_of(study, task):
        own = {name: stage.travel_of(name, role) * task.warm_share for name in task.trains}
        for name in study.components_of(task):
            part = own.get(name, max(own.values()))
            found.append(stage.travel(name) / part if part else math.inf)
    return max(found)


def _stages_of(study: Study, task: Task) -> Iterator[tuple[Stage, Role]]:
    return ((stage, role) for stage in study.stages for role in ROLES if stage.task_of(role) == task)


def _score_rounds(study: Study, task: Task) -> float | None:
    if not isinstance(task, Score):
        return None
    every = [round_.stage for round_ in study.rounds()]
    return max(sum(isinstance(stage.task_of(role), Score) for stage in every) for role in ROLES)


LIMITS = (
    Limit("min_update_draws", "images behind each update (steps x patients a step)", True, _draws, unless_private=True),
    Limit("max_mask_ratio", "share of an image that is hidden and filled in", False, _mask_ratio),
    Limit("max_mask_side", "side of a hidden block, as a share of the image's side", False, _mask_side),
    Limit("max_learning_rate", "learning rate", False, _rate),
    Limit("max_weight_decay", "weight decay", False, _decay),
    Limit("max_update_norm", "size of an update (L2 norm)", False, _norm),
    Limit("max_travel", "how far a round moves a weight at most (steps x learning rate x rho)", False, _travel),
    Limit("max_travel_ratio", "that way, in multiples of what your own update moves", False, _travel_ratio),
    Limit("max_score_rounds", "rounds that only measure the model you received", False, _score_rounds),
)


def settings_of(study: Study, task: Task, policy: "Policy") -> Iterator[Setting]:
    """Yield the limited settings of a task in a study, each with the policy's bound."""
    for limit in LIMITS:
        value = limit.value(study, task)
        if value is not None and not (limit.unless_private and policy.bounded(study)):
            yield Setting(limit.key, limit.words, value, getattr(policy, limit.key), limit.least)
