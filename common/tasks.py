"""The tasks, each declared once: settings, who may run it on whose images, what it reads, trains and reports.

Torch-free. What a task does is in the module that `implementation` names; the contract, a hospital's policy and
tables, the role check of a study and the worker's dispatch follow from what stands here. To add one, see
docs/method.md.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, field_validator
from pydantic_core import PydanticUndefined

from common.artefact_settings import Artefacts
from common.components import BASELINE, BRANCH_PARTS, FUSED, HALVES, ROLES, STUDENT, Role, Split, branches_of
from common.metric import LOSS, SCORE, VAL_DICE, Metric
from common.metric_name import ALL as EVALUATION
from common.settings import Settings, by_key


def unset(value: object) -> bool:
    """Whether a setting is off, and then no part of a study's resolved form: studies older than it keep their hash."""
    return not value


def _no_whisper(weight: float) -> float:
    if 0 < weight < LEAST_LOSS_WEIGHT:
        raise ValueError(
            f"expected 0 or at least {LEAST_LOSS_WEIGHT}, found {weight:g}: a loss of next to nothing brings gradients "
            "near the eps of Adam, whose steps then tell their sizes and not only their signs"
        )
    return weight


#: Least weight of a term of a loss that is not off.
LEAST_LOSS_WEIGHT = 0.01
#: A weight that a study gives a term of a loss. It has an end, since a huge one makes the other terms whisper: the clip
#: is over all gradients together.
LossWeight = Annotated[float, Field(ge=0, le=10), AfterValidator(_no_whisper)]

#: What a task may be called; messages carry it.
TASK_NAME = r"^[a-z][a-z_]{0,39}$"


class Task(Settings):
    """What every task has. A subclass whose `task` has a default is known by that name from then on.

    Attributes:
        trains: components whose updates leave the site. A branch's name stands for both halves.
    """

    #: Module with `run(context)`, or for a training task `objective(context)`; empty: clients.learning.TASK.
    implementation: ClassVar[str] = ""
    #: What it does with a hospital's images, in plain words.
    meaning: ClassVar[str] = ""
    #: Roles that may run it, and the split whose patients it draws; None where it looks at patients of several.
    roles: ClassVar[tuple[Role, ...]] = ROLES
    split: ClassVar[Split | None] = None
    #: Components that it reads besides those it trains. `BASELINE` and `STUDENT` come where the study has them.
    reads: ClassVar[tuple[str, ...]] = ()
    trainable: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[Mapping[str, Metric]] = {}
    #: Why the task cannot be in a study with differential privacy; empty where it can.
    not_private: ClassVar[str] = ""
    #: Its `score` tells, beside the sources' `val_dice`, which round's model is released, and whether one is undone.
    selects_release: ClassVar[bool] = False
    #: It is given the released model instead of the current one; where it trains nothing, it needs no quorum.
    of_released: ClassVar[bool] = False

    task: str
    trains: tuple[str, ...] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Register the task by its name.

        Raises:
            TypeError: if its name cannot travel, or nothing says why it is not private: the numbers of a task that
                trains nothing have no noise, so silence here would let them out of a study with differential privacy.
        """
        name = cls.model_fields["task"].default
        if name is PydanticUndefined:
            return
        if not re.fullmatch(TASK_NAME, name):
            raise TypeError(f"a task's name is small letters and underscores, found {name!r}")
        if not issubclass(cls, TrainingTask) and not cls.not_private:
            raise TypeError(f"task {name!r} trains nothing: say in `not_private` why it cannot be private")
        TASKS[name] = cls

    @field_validator("trains", mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        return list(dict.fromkeys(part for name in value for part in HALVES.get(name, [name])))

    @field_validator("trains")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [name for name in value if name not in cls.trainable]
        if wrong:
            raise ValueError(f"cannot train {', '.join(wrong)}; this task trains: {', '.join(cls.trainable)}")
        return value

    def components(self) -> tuple[str, ...]:
        """Return the components that a request of this task carries."""
        return tuple(dict.fromkeys((*self.trains, *self._whole_branches(), *self.reads)))

    def _whole_branches(self) -> list[str]:
        """Return both halves of every branch of which one half is trained."""
        return [half for branch in branches_of(self.trains) for half in HALVES[branch]]

    @classmethod
    def metrics_of(cls, role: Role, *, private: bool, judged: bool, predictors: Collection[str]) -> tuple[str, ...]:
        """Return the numbers that a site of `role` may send at most.

        Args:
            private: the study has differential privacy; no noise is in a training task's numbers, so none leaves.
            judged: the stage's rounds may be released.
            predictors: what the study has to evaluate.
        """
        if private and issubclass(cls, TrainingTask):
            return ()
        return tuple(
            name
            for name, metric in cls.metrics.items()
            if metric.role in (None, role) and set(metric.about) <= set(predictors) and (judged or not metric.judging)
        )


#: Every task by its name.
TASKS: dict[str, type[Task]] = {}


class TrainingTask(Task):
    """A task that takes gradient steps.

    Attributes:
        steps: optimizer steps a round.
        learning_rate: peak of AdamW's rate; it follows a cosine over the stage's rounds.
        warmup_steps: linear warm-up of each round. Adam starts fresh each round, and its first steps,
            with second moments known from one batch only, would otherwise kick the averaged model.
        average: decay a step of the weights' running average, which is what leaves (Polyak, Juditsky 1992); 0 sends the
            last step's. 0.98 averages over some 50 steps and lags as many behind.
    """

    split: ClassVar[Split] = "train"
    trains: tuple[str, ...] = Field(min_length=1)
    steps: int = Field(default=40, ge=1, le=100_000)
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    warmup_steps: int = Field(default=5, ge=0)
    average: float = Field(default=0.0, ge=0, lt=1, exclude_if=unset)

    @property
    def warm_share(self) -> float:
        """The mean of a round's warm-up over its steps, in (0, 1]: what is left of steps x learning rate."""
        short = min(self.steps, self.warmup_steps)  # steps below the full rate
        return (short * (short + 1) / 2 / (self.warmup_steps + 1) + self.steps - short) / self.steps


class Supervise(TrainingTask):
    """Dice + cross-entropy on labelled `train` patients.

    Where both branches travel, the head goes with them (0.4 kB). In a stage whose rounds may be released the reply
    holds the Dice of the received model, or of the one branch that travels, on `val` patients.

    Attributes:
        artefacts: what a view may show besides the common augmentation, see `common.artefacts`.
    """

    meaning: ClassVar[str] = "trains on your labelled images"
    roles: ClassVar[tuple[Role, ...]] = ("source",)
    trainable: ClassVar[tuple[str, ...]] = BRANCH_PARTS
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss": LOSS,
        # as a prior it has a tolerance of a tenth at least
        "foreground_fraction": Metric(
            0,
            1,
            "mean share of the image that is marked, over your labelled training patients, to two digits",
            digits=2,
            frozen=True,
        ),
        "val_dice": replace(VAL_DICE, judging=True),
    }
    task: Literal["supervise"] = "supervise"
    artefacts: Artefacts = Field(default={}, exclude_if=unset)

    def components(self) -> tuple[str, ...]:
        """Return what it trains, and the head with both whole branches."""
        sent = super().components()
        return FUSED if set(BRANCH_PARTS) <= set(sent) else sent


class SelfSupervise(TrainingTask):
    """Masked image modelling and dense within-image contrast on unlabelled `train` patients.

    Attributes:
        mask_ratio: share of the blocks that is hidden (0.6: MAE's 0.75 leaves too little at 64 px).
        mask_block: side of a block in pixels; larger than speckle, smaller than the bone.
        contrast_weight: weight of the contrastive term beside the reconstruction; 0 switches it off.
        reconstruction_weight: weight of the reconstruction; 0 switches it off.
        contrast_temperature: InfoNCE's temperature; a large one shrinks gradients as a small weight of the loss does.
    """

    meaning: ClassVar[str] = (
        "trains on your images without labels: fills in hidden parts, matches two views of an image"
    )
    roles: ClassVar[tuple[Role, ...]] = ("target",)
    trainable: ClassVar[tuple[str, ...]] = ("target_branch.encoder", "mim_decoder", "projector")
    reads: ClassVar[tuple[str, ...]] = trainable
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss": LOSS,
        "reconstruction_loss": Metric(0, math.inf, "mean error of filled-in image parts; no unit"),
        "contrast_loss": Metric(0, math.inf, "mean error of matching two views of an image; no unit"),
    }
    task: Literal["self_supervise"] = "self_supervise"
    mask_ratio: float = Field(default=0.6, gt=0, lt=1)
    mask_block: int = Field(default=8, ge=2)
    reconstruction_weight: LossWeight = 1.0
    contrast_weight: LossWeight = 0.1
    contrast_temperature: float = Field(default=0.2, ge=0.01, le=10)

    def _whole_branches(self) -> list[str]:
        return []  # the decoder never sees an unlabelled image here, so it does not travel


class SelfTrain(TrainingTask):
    """Student under the fused teacher: pseudo-labels from a weak view, learnt on a strong view.

    Attributes:
        learning_rate: half of `supervise`: pseudo-labels are wrong in places, and at 1e-3 it stalls.
        prior_tolerance: the pseudo-labels' mean foreground may differ from the sources' by this factor
            before the threshold moves. 1.1 where images have a common spacing: without it the pseudo-labels of
            thin structures grew by a fifth on a blurred probe. 3 where they are only letterboxed: the same
            lesion is then larger or smaller by how deep the image reaches, and the prior only tells a collapse.
        confidence_power: a pixel weighs `|2p - 1| ** power`, a thousandth at least; 0 trusts all pixels alike. Under a
            large power the surest image of a batch would be all that is left in the gradients.
        strength: of the simulated device shift in the student's view, in [0, 1].
        artefacts: what the student's view may show besides, see `common.artefacts`.
    """

    meaning: ClassVar[str] = "trains on your images without labels, with the present model's own predictions as labels"
    roles: ClassVar[tuple[Role, ...]] = ("target",)
    trainable: ClassVar[tuple[str, ...]] = BRANCH_PARTS
    reads: ClassVar[tuple[str, ...]] = FUSED
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss": LOSS,
        "confidence": Metric(
            0, 1, "how sure the received model is of its predictions on your images, a mean from 0 to 1"
        ),
        "pseudo_foreground_fraction": Metric(
            0, 1, "mean share of the image that the received model marks on your images"
        ),
        "score": SCORE,
    }
    not_private: ClassVar[str] = (
        "the threshold of its pseudo-labels is taken over all patients together, so one patient moves the "
        "gradients of others by an amount that no clip bounds"
    )
    selects_release: ClassVar[bool] = True
    task: Literal["self_train"] = "self_train"
    learning_rate: float = Field(default=5e-4, gt=0, le=1)
    prior_tolerance: float = Field(default=1.1, ge=1)
    confidence_power: float = Field(default=1.0, ge=0, le=4)
    strength: float = Field(default=0.7, ge=0, le=1)
    artefacts: Artefacts = Field(default={}, exclude_if=unset)


class Infuse(TrainingTask):
    """The infusion head and its temperatures, on `calibrate` patients under simulated device shift.

    The paper's option: after `refine` the head wins nothing over the plain average, before it 1.6 points at most
    (docs/results.md). A study without this task has that average where its `source_share` is 1/2.

    Attributes:
        learning_rate: ten times a branch's: the head has 0.8 thousand parameters and starts at zero.
        strength: of the simulated device shift, in [0, 1]; without any, the head learns to trust
            whichever branch overfitted the source probe.
        shrinkage: weight of the penalty `4 (w - source_share)^2`, averaged over pixels, beside the loss. What the
            head learns on simulated shifts holds on the true one only in part, and a fixed share is hard to beat.
    """

    meaning: ClassVar[str] = (
        "trains the small network that weighs the two branches, on your labelled `calibrate` patients"
    )
    roles: ClassVar[tuple[Role, ...]] = ("source",)
    split: ClassVar[Split] = "calibrate"
    trainable: ClassVar[tuple[str, ...]] = ("infusion_head",)
    reads: ClassVar[tuple[str, ...]] = FUSED
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss": LOSS,
        "mean_weight": Metric(0, 1, "mean weight of the first branch on your `calibrate` patients, 0 to 1"),
        "val_dice": VAL_DICE,
    }
    not_private: ClassVar[str] = (
        "its `calibrate` patients have no accountant; leave the head out, and the study's source_share weighs"
    )
    task: Literal["infuse"] = "infuse"
    trains: tuple[str, ...] = Field(default=("infusion_head",), min_length=1)
    learning_rate: float = Field(default=1e-2, gt=0, le=1)
    strength: float = Field(default=1.0, ge=0, le=1)
    shrinkage: float = Field(default=10.0, ge=0, le=100)


class Distil(TrainingTask):
    """A small student learns what the released model predicts, so that one fast network can stand for all of it.

    Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531) with the teacher's probabilities as soft labels. It
    comes after all other stages. With no labels and no number before its steps it can be private.

    Attributes:
        learning_rate: a student a quarter of a branch's size bears more, and starts from nothing.
        strength: of the simulated device shift in the student's view, in [0, 1]; the teacher sees the plain image.
    """

    meaning: ClassVar[str] = (
        "trains a small, fast network on your images, with the released model's own predictions as labels"
    )
    trainable: ClassVar[tuple[str, ...]] = STUDENT
    reads: ClassVar[tuple[str, ...]] = FUSED
    metrics: ClassVar[Mapping[str, Metric]] = {"loss": LOSS}
    of_released: ClassVar[bool] = True
    task: Literal["distil"] = "distil"
    trains: tuple[str, ...] = Field(default=STUDENT, min_length=1)
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    strength: float = Field(default=0.5, ge=0, le=1)


class Score(Task):
    """How good is the received model? Targets answer the label-free score, sources Dice on `val`."""

    meaning: ClassVar[str] = "trains nothing; measures the model that you received"
    reads: ClassVar[tuple[str, ...]] = FUSED
    metrics: ClassVar[Mapping[str, Metric]] = {"score": SCORE, "val_dice": VAL_DICE}
    not_private: ClassVar[str] = "its number is measured on the patients and not noised"
    selects_release: ClassVar[bool] = True
    task: Literal["score"] = "score"


class Evaluate(Task):
    """Every predictor on the labelled `test` patients, by patient; only means and intervals leave."""

    meaning: ClassVar[str] = "trains nothing; compares the models with your labelled `test` patients"
    split: ClassVar[Split] = "test"
    reads: ClassVar[tuple[str, ...]] = (*FUSED, *BASELINE, *STUDENT)
    metrics: ClassVar[Mapping[str, Metric]] = {
        str(name): Metric(
            *name.range, name.meaning, about=name.about, digits=None if name.statistic == "patients" else 3
        )
        for name in EVALUATION
    }
    not_private: ClassVar[str] = "it is not a stage; set privacy.evaluation to `outside` for the closing evaluation"
    of_released: ClassVar[bool] = True
    task: Literal["evaluate"] = "evaluate"


def all_metrics() -> dict[str, Metric]:
    """Return every number that any task may send, by name, in the order of the tasks."""
    found: dict[str, Metric] = {}
    for task in TASKS.values():
        for name, metric in task.metrics.items():
            found.setdefault(name, metric)
    return found


#: Any registered task, read from settings by its key `task`.
AnyTask = Annotated[SerializeAsAny[Task], BeforeValidator(by_key("task", TASKS))]
