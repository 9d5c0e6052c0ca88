"""A mean teacher: the running average of its students, which labels the images anew as it moves.

Tarvainen and Valpola 2017, arXiv 1703.01780, on top of our own self-training: pseudo-labels, confidence and view are
those of `self_train`. Between two aggregations nothing holds such a teacher to the sources' labels, and docs/results.md
has a study that it led astray: the method's own teacher stays as it was received.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Generator

from clients.data.frames import Frame
from clients.learning import self_train
from clients.learning.self_train import Teacher
from clients.learning.training import Loss, Objective, TaskContext, averaging, follow
from common.tasks import SelfTrain


class MeanTeacher(SelfTrain):
    """`self_train` whose teacher follows the students within a round.

    Attributes:
        teacher_decay: decay a step of the running average, which begins each round at the received model.
        remake_every: steps after which the pseudo-labels are made anew by the teacher of then.
    """

    implementation: ClassVar[str] = __name__
    meaning: ClassVar[str] = "trains on your images without labels, with a moving average's predictions as labels"
    task: Literal["mean_teacher"] = "mean_teacher"  # type: ignore[assignment]  # a name of its own
    teacher_decay: float = Field(default=0.99, ge=0, lt=1)
    remake_every: int = Field(default=10, ge=1)


def objective(context: TaskContext) -> Objective:
    """Return the loss of `self_train` under a teacher that takes a step towards the students before each of theirs."""
    task = context.task
    assert isinstance(task, MeanTeacher)
    teacher, steps = Teacher(context), itertools.count()
    own = self_train.objective(context, teacher=teacher)

    def loss(frames: Sequence[Frame], generator: Generator) -> Loss:
        if step := next(steps):
            follow(teacher.networks.parameters(), context.networks.parameters(), averaging(task.teacher_decay, step))
            if step % task.remake_every == 0:
                teacher.taught.clear()
        return own.loss(frames, generator)

    return replace(own, loss=loss)
