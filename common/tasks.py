"""The settings of each task, as a study writes them. One class a task; `AnyTask` is the registry.

Torch-free. What a task does is in `clients/learning/<task>.py`.
"""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from common.contract import BRANCHES, COMPONENTS, FUSED
from common.settings import Settings

#: What `common.artefacts` can draw into a training image.
Artefact = Literal[
    "reverberation",
    "shadow",
    "depth_blur",
    "speckle",
    "near_field_clutter",
    "time_gain",
    "compression",
    "calipers",
    "depth_setting",
    "field_of_view",
]
#: Artefact -> strength in [0, 1].
Artefacts = dict[Artefact, Annotated[float, Field(gt=0, le=1)]]


def unset(value: object) -> bool:
    """Whether a setting is off, and then no part of a study's resolved form: studies older than it keep their hash."""
    return not value


_HALVES = {branch: [f"{branch}.encoder", f"{branch}.decoder"] for branch in BRANCHES}


class Task(Settings):
    """What every task has.

    Attributes:
        trains: components whose updates leave the site. A branch's name stands for both halves.
    """

    #: Components that the task reads besides those it trains.
    reads: ClassVar[tuple[str, ...]] = ()
    trainable: ClassVar[tuple[str, ...]] = COMPONENTS
    #: Why the task cannot be in a study with differential privacy; empty where it can.
    not_private: ClassVar[str] = ""
    trains: tuple[str, ...] = ()

    @field_validator("trains", mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        return list(dict.fromkeys(part for name in value for part in _HALVES.get(name, [name])))

    @field_validator("trains")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [name for name in value if name not in cls.trainable]
        if wrong:
            raise ValueError(f"cannot train {', '.join(wrong)}; this task trains: {', '.join(cls.trainable)}")
        return value

    def components(self) -> tuple[str, ...]:
        """Return the components that a request of this task carries, in the contract's order."""
        return tuple(dict.fromkeys((*self.trains, *self._whole_branches(), *self.reads)))

    def _whole_branches(self) -> list[str]:
        """Return both halves of every branch of which one half is trained."""
        return [half for b in BRANCHES if any(t.startswith(b) for t in self.trains) for half in _HALVES[b]]


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

    trains: tuple[str, ...] = Field(min_length=1)
    steps: int = Field(default=40, ge=1, le=100_000)
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    warmup_steps: int = Field(default=5, ge=0)
    average: float = Field(default=0.0, ge=0, lt=1, exclude_if=unset)


class Supervise(TrainingTask):
    """Dice + cross-entropy on labelled `train` patients.

    Where both branches travel, the head goes with them (0.4 kB): the reply then holds the received
    fused model's Dice on `val` patients, the reference for the label-free score.

    Attributes:
        artefacts: what a view may show besides the common augmentation, see `common.artefacts`.
    """

    task: Literal["supervise"] = "supervise"
    trainable: ClassVar[tuple[str, ...]] = COMPONENTS[:4]
    artefacts: Artefacts = Field(default={}, exclude_if=unset)

    def components(self) -> tuple[str, ...]:
        sent = super().components()
        return FUSED if set(FUSED) - {"infusion_head"} <= set(sent) else sent


class SelfSupervise(TrainingTask):
    """Masked image modelling and dense within-image contrast on unlabelled `train` patients.

    Attributes:
        mask_ratio: share of the blocks that is hidden (0.6: MAE's 0.75 leaves too little at 64 px).
        mask_block: side of a block in pixels; larger than speckle, smaller than the bone.
        contrast_weight: weight of the contrastive term beside the reconstruction; 0 switches it off.
        reconstruction_weight: weight of the reconstruction; 0 switches it off.
        contrast_temperature: InfoNCE's temperature.
    """

    task: Literal["self_supervise"] = "self_supervise"
    trainable: ClassVar[tuple[str, ...]] = ("target_branch.encoder", "mim_decoder", "projector")
    reads: ClassVar[tuple[str, ...]] = ("target_branch.encoder", "mim_decoder", "projector")
    mask_ratio: float = Field(default=0.6, gt=0, lt=1)
    mask_block: int = Field(default=8, ge=2)
    reconstruction_weight: float = Field(default=1.0, ge=0)
    contrast_weight: float = Field(default=0.1, ge=0)
    contrast_temperature: float = Field(default=0.2, gt=0)

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
        confidence_power: a pixel weighs `|2p - 1| ** power`; 0 trusts all pixels alike.
        strength: of the simulated device shift in the student's view, in [0, 1].
        artefacts: what the student's view may show besides, see `common.artefacts`.
        teacher_decay: decay a step of the teacher, the running average of the students' weights (Tarvainen, Valpola
            2017, arXiv 1703.01780), which begins each round at the received model; 1 leaves it there.
        remake_every: steps after which the pseudo-labels are made anew by the teacher of then; None: once a round.
    """

    task: Literal["self_train"] = "self_train"
    not_private: ClassVar[str] = (
        "the threshold of its pseudo-labels is taken over all patients together, so one patient moves the "
        "gradients of others by an amount that no clip bounds"
    )
    trainable: ClassVar[tuple[str, ...]] = COMPONENTS[:4]
    reads: ClassVar[tuple[str, ...]] = FUSED
    learning_rate: float = Field(default=5e-4, gt=0, le=1)
    prior_tolerance: float = Field(default=1.1, ge=1)
    confidence_power: float = Field(default=1.0, ge=0)
    strength: float = Field(default=0.7, ge=0, le=1)
    artefacts: Artefacts = Field(default={}, exclude_if=unset)
    teacher_decay: float = Field(default=1.0, ge=0, le=1, exclude_if=lambda decay: decay == 1)
    remake_every: int | None = Field(default=None, ge=1, exclude_if=unset)


class Infuse(TrainingTask):
    """The infusion head and its temperatures, on `calibrate` patients under simulated device shift.

    The paper's option: in no table of docs/results.md does the head win anything over the plain average, which is what
    a study without this task has.

    Attributes:
        learning_rate: ten times a branch's: the head has 0.8 thousand parameters and starts at zero.
        strength: of the simulated device shift, in [0, 1]; without any, the head learns to trust
            whichever branch overfitted the source probe.
        shrinkage: weight of the penalty `4 (w - 1/2)^2`, averaged over pixels, beside the loss. What the head learns on
            simulated shifts holds on the true one only in part, and the plain average is hard to beat.
    """

    task: Literal["infuse"] = "infuse"
    not_private: ClassVar[str] = (
        "its `calibrate` patients have no accountant; leave the head out, which then is the plain average"
    )
    trainable: ClassVar[tuple[str, ...]] = ("infusion_head",)
    reads: ClassVar[tuple[str, ...]] = FUSED
    trains: tuple[str, ...] = Field(default=("infusion_head",), min_length=1)
    learning_rate: float = Field(default=1e-2, gt=0, le=1)
    strength: float = Field(default=1.0, ge=0, le=1)
    shrinkage: float = Field(default=10.0, ge=0)


class Score(Task):
    """How good is the received model? Targets answer the label-free score, sources Dice on `val`."""

    task: Literal["score"] = "score"
    not_private: ClassVar[str] = "its number is measured on the patients and not noised"
    trainable: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = FUSED


class Evaluate(Task):
    """Every predictor on the labelled `test` patients, by patient; only means and intervals leave."""

    task: Literal["evaluate"] = "evaluate"
    not_private: ClassVar[str] = "it is not a stage; set privacy.evaluation to `outside` for the closing evaluation"
    trainable: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = FUSED


AnyTask = Annotated[Supervise | SelfSupervise | SelfTrain | Infuse | Score | Evaluate, Field(discriminator="task")]
TASKS: tuple[type[Task], ...] = get_args(get_args(AnyTask)[0])
