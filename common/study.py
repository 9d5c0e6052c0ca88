"""A study: one federated training, read from YAML, known by the hash of its resolved form. Torch-free."""

import hashlib
import json
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from common.components import BASELINE, BRANCH_PARTS, COMPONENTS, HALVES, ROLES, STUDENT, Role, branches_of
from common.errors import StudyError
from common.masking import LEAST_SITES
from common.metric_name import PREDICTORS
from common.names import NAME
from common.network_settings import BasicUNet, Network
from common.privacy import Privacy
from common.run_folder import RunFolder
from common.settings import Settings, parse_settings, read_settings
from common.stage import Round, Stage
from common.strict_text import TextError, read_yaml
from common.study_settings import Augmentation, ImageGrid, InitialWeights, Participation, Release
from common.tasks import Evaluate, Score, Supervise, Task, unset

#: The engine's own closing stages.
CLOSING_SCORE = Stage(name="score", rounds=1, source=Score(), target=Score())
CLOSING_EVALUATION = Stage(name="evaluate", rounds=1, source=Evaluate(), target=Evaluate())


class Study(Settings):
    """Everything that decides a training, and so everything that a hospital approves.

    Attributes:
        seed: of the initial components; a site's randomness comes from its own secret.
        batch_size: patients a step, one frame each.
        weight_decay: AdamW's.
        student: the small network that `distil` trains, without its own key `kind` a BasicUNet with the `features` that
            it names; None: the study has no student.
        flips_at_inference: average each prediction with that of the mirrored image, for every
            predictor, the baseline included; the student alone is never mirrored, see `common.infusion`.
        smallest_part: connected parts of a prediction smaller than this share of its largest one are dropped, for every
            predictor, the baseline included, and so from pseudo-labels too; 0 keeps all.
        source_share: the source branch's share of the fused prediction, in [0.01, 0.99], as long as no `infuse` has
            trained the head, and where its shrinkage draws it: 1/2 is the plain average of both branches.
        initial: component -> weights file that replaces the seeded ones; `baseline` may be given too,
            then `evaluate` reports differences to it.
        privacy: patient-level differential privacy; None: nothing bounds what updates tell of a patient.
        secure_aggregation: roles whose updates are summed under masks, so that nobody, the server included, sees a
            single site's, see `common.masking`. Each needs a quorum of three sites.
    """

    name: str = Field(pattern=NAME)
    seed: int = Field(default=0, ge=0, lt=2**31)
    image: ImageGrid = ImageGrid()
    network: Network = BasicUNet()
    student: Network | None = Field(default=None, exclude_if=unset)
    augmentation: Augmentation = Augmentation()
    batch_size: int = Field(default=8, ge=1, le=1024)
    weight_decay: float = Field(default=1e-4, ge=0)
    flips_at_inference: bool = True
    smallest_part: float = Field(default=0.0, ge=0, le=1, exclude_if=unset)
    participation: Participation = Participation()
    release: Release = Release()
    source_share: float = Field(default=0.5, ge=0.01, le=0.99, exclude_if=(0.5).__eq__)
    initial: dict[str, InitialWeights] = Field(default_factory=dict)
    privacy: Privacy | None = None
    secure_aggregation: tuple[Role, ...] = Field(default=(), exclude_if=unset)
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = (*self.components, *(name for name in HALVES if HALVES[name][0] in self.components), "baseline")
        wrong = sorted(self.initial.keys() - set(known))
        if wrong:
            raise ValueError(f"unknown component(s) in initial: {', '.join(wrong)}; known: {', '.join(known)}")
        if self.image.size % self.network.stride:
            raise ValueError(f"image.size must be a multiple of the network's stride, {self.network.stride}")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names) or {"score", "evaluate"} & set(names):
            raise ValueError("stage names must differ, and `score` and `evaluate` are the engine's own")
        evaluating = [
            stage.name for stage in self.stages for role in ROLES if isinstance(stage.task_of(role), Evaluate)
        ]
        if evaluating:
            raise ValueError(
                f"stage `{evaluating[0]}`: `evaluate` is the engine's own closing round; each more would be a look at "
                "the test patients by a model of the coordinator's choice"
            )
        first_released = next((i for i, stage in enumerate(self.stages) if stage.selects_release), len(self.stages))
        late = [s.name for i, s in enumerate(self.stages) if s.begin and (i > first_released or s.distils)]
        if late:
            raise ValueError(
                f"stage `{late[0]}`: a branch may begin as the other one only before a model can be released: one that "
                "came back would be none that a site can know"
            )
        return self

    @model_validator(mode="after")
    def _distils(self) -> Self:
        stages = [stage.distils for stage in self.stages]
        if (self.student is not None) != any(stages):
            raise ValueError(
                "the key student and a stage with `distil` go together: the one names what the other trains"
            )
        if self.student is None:
            return self
        if self.image.size % self.student.stride:
            raise ValueError(f"image.size must be a multiple of the student's stride, {self.student.stride}")
        if stages != sorted(stages):
            raise ValueError("`distil` stages come last: the student learns from the model that is released")
        if missing := set(BRANCH_PARTS) - self.given - self._trained:
            raise ValueError(
                f"`distil` has no model to learn from: expected every part of both branches to be trained or given in "
                f"initial, found nothing of {', '.join(sorted(missing))}"
            )
        return self

    @model_validator(mode="after")
    def _private(self) -> Self:
        if self.privacy is None:
            return self
        if self.privacy.nominal_patients < self.batch_size:
            raise ValueError(
                f"privacy.nominal_patients must be at least batch_size, {self.batch_size}: their quotient is a "
                "probability"
            )
        wrong = [
            f"stage `{stage.name}`: `{task.task}` is not possible under privacy: {task.not_private}"
            for stage in self.stages
            for task in map(stage.task_of, ROLES)
            if task is not None and task.not_private
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @model_validator(mode="after")
    def _summed_under_masks(self) -> Self:
        few = [role for role in self.secure_aggregation if self.participation.quorum.get(role, 0) < LEAST_SITES]
        if few:
            raise ValueError(
                f"secure_aggregation needs participation.quorum to be {LEAST_SITES} or more for {' and '.join(few)}: a "
                "sum of two is no secret of either"
            )
        other = [stage.name for stage in self.stages if self.secure_aggregation and stage.aggregator != "exact_mean"]
        if other:
            raise ValueError(
                f"stage `{other[0]}`: under secure_aggregation only a sum is known, so aggregator: exact_mean"
            )
        return self

    def masks(self, task: Task, role: Role) -> bool:
        """Whether the updates of a task's sites are summed under masks."""
        return role in self.secure_aggregation and bool(task.trains)

    @property
    def _trained(self) -> set[str]:
        tasks = [task for stage in self.stages for role in ROLES if (task := stage.task_of(role))]
        return {name for task in tasks for name in task.trains}

    @property
    def given(self) -> set[str]:
        """The components that begin with weights of `initial`, and so with none that the seed tells."""
        return {half for name in self.initial for half in HALVES.get(name, (name,))}

    @property
    def fused(self) -> bool:
        """Whether the study trains more than a single branch, so that there is something to fuse."""
        return not self._trained <= set(HALVES["source_branch"])

    @property
    def learnt(self) -> tuple[str, ...]:
        """The branches that are trained, given, or taken over from one that is: others are as the seed has them."""
        begun = {half for stage in self.stages for branch in stage.begin for half in HALVES[branch]}
        return tuple(branches_of(self._trained | begun | self.given))

    @property
    def components(self) -> tuple[str, ...]:
        """All components of this study; the baseline, which none trains, is not among them."""
        return tuple(name for name in COMPONENTS if self.student is not None or name not in STUDENT)

    @property
    def may_evaluate(self) -> bool:
        """Whether numbers about test patients may leave: under privacy only where the study says `outside`."""
        return self.privacy is None or self.privacy.evaluation == "outside"

    def rounds(self) -> tuple[Round, ...]:
        """Return every round in order, the engine's own closing ones included.

        After the study's stages a fused study scores its last model (`score`) and evaluates the
        released one (`evaluate`). Under privacy nothing is scored, the last model is the released one,
        and it is evaluated only where the study says so. `distil` comes between the two: once it is known which model
        is released.
        """
        scored = self.fused and self.privacy is None
        evaluated = self.fused and self.may_evaluate
        stages = (
            *(stage for stage in self.stages if not stage.distils),
            *([CLOSING_SCORE] if scored else []),
            *(stage for stage in self.stages if stage.distils),
            *([CLOSING_EVALUATION] if evaluated else []),
        )
        steps = ((stage, step) for stage in stages for step in range(stage.rounds))
        return tuple(Round(index, stage, step) for index, (stage, step) in enumerate(steps))

    def needs(self, role: Role) -> int:
        """Return the least number of sites of `role` without which the study cannot run."""
        works = any(stage.task_of(role) for stage in self.stages)
        return self.participation.quorum.get(role, 0) if works else 0

    @property
    def compares(self) -> bool:
        """Whether the study names a baseline, with which an evaluation compares."""
        return "baseline" in self.initial

    @property
    def predictors(self) -> tuple[str, ...]:
        """What an evaluation compares in this study, in the contract's order."""
        there = {"baseline": self.compares, "student": self.student is not None}
        return tuple(name for name in PREDICTORS if there.get(name, True))

    def components_of(self, task: Task) -> tuple[str, ...]:
        """Return what a request of `task` carries in this study."""
        known = {*self.components, *(BASELINE if self.compares else ())}
        return tuple(name for name in task.components() if name in known)

    def metrics_of(self, stage: Stage, role: Role) -> tuple[str, ...]:
        """Return the numbers that sites of `role` may send in a stage of this study, before their policies."""
        task = stage.task_of(role)
        if task is None:
            return ()
        private, judged = self.privacy is not None, stage.selects_release
        return task.metrics_of(role, private=private, judged=judged, predictors=self.predictors)

    def resolved(self) -> str:
        """Return the canonical JSON of the study with every default written out."""
        content = self.model_dump(mode="json")
        for weights in content["initial"].values():
            del weights["file"]  # a path differs by machine; the content's hash does not
        if self.privacy is None:
            del content["privacy"]  # studies that are older than the section keep their hash
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    def hash(self) -> str:
        """Return the SHA-256 of `resolved()`, in hex: the name that sites approve."""
        return hashlib.sha256(self.resolved().encode()).hexdigest()

    def supervised_steps(self) -> int:
        """Return the supervised steps that a source site takes over all branches."""
        return sum(
            stage.rounds * stage.source.steps * len(branches_of(stage.source.trains))
            for stage in self.stages
            if isinstance(stage.source, Supervise)
        )


def parse_study(content: object, *, origin: str) -> Study:
    """Return the study in `content`; see `parse_settings`."""
    return parse_settings(Study, content, what="study", origin=origin)


def load_study(path: Path) -> Study:
    """Read and validate a study file; see `read_settings`."""
    study = read_settings(Study, path, what="study")
    # A weights file is named from where the study file lies, so that both can be moved together.
    folder = path.absolute().parent
    initial = {
        name: weights.model_copy(update={"file": folder / weights.file}) for name, weights in study.initial.items()
    }
    return study.model_copy(update={"initial": initial})


def read_study_of_run(run: Path) -> Study:
    """Return the study that a run's folder was made with.

    Raises:
        StudyError: if the folder holds no run, or its study is damaged.
    """
    file = RunFolder(run).study
    try:
        content = read_yaml(file)
        return parse_study(content["study"], origin=str(file))  # type: ignore[index]
    except (OSError, TextError, TypeError, KeyError):
        raise StudyError(f"{run} holds no run: {file.name} is missing or damaged. Give a run's folder.") from None
