"""Masked image consistency: the student sees a few blocks of the image, and learns what the teacher says of all of it.

MIC, Hoyer et al. 2023, arXiv 2212.01322, as the only loss on the target, on top of our own self-training: teacher,
pseudo-labels, confidence and view are those of `self_train`, so that the masking alone differs. The paper's teacher
follows the student with every step, and its confidence is one number an image.
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Generator

from clients.data.dataset import Batch
from clients.learning import self_train
from clients.learning.self_supervise import random_masking
from clients.learning.training import Objective, TaskContext
from clients.learning.view import View, view
from common.study_settings import Augmentation
from common.tasks import SelfTrain


class MaskedConsistency(SelfTrain):
    """`self_train` whose student's view has blocks hidden.

    Attributes:
        mask_ratio: share of the blocks that is hidden.
        mask_block: side of a block in pixels: an eighth of a tile, as the paper's 64 of 512 pixels.
    """

    implementation: ClassVar[str] = __name__
    meaning: ClassVar[str] = "trains on your images without labels, parts of them hidden, with predictions as labels"
    task: Literal["masked_consistency"] = "masked_consistency"  # type: ignore[assignment]  # a name of its own
    mask_ratio: float = Field(default=0.7, gt=0, lt=1)
    mask_block: int = Field(default=8, ge=2)


def objective(context: TaskContext) -> Objective:
    """Return the loss of `self_train` with `mask_ratio` of each view hidden."""
    task, side = context.task, context.study.image.size
    assert isinstance(task, MaskedConsistency)

    def masked(batch: Batch, augmentation: Augmentation, generator: Generator, *device: Any) -> View:
        seen = view(batch, augmentation, generator, *device)
        hidden = random_masking(len(seen.x), side, task.mask_block, task.mask_ratio, generator)
        # a hidden pixel shows the image's mean, which is 0 after standardising
        return replace(seen, x=seen.x * (1 - hidden))

    return self_train.objective(context, masked)
