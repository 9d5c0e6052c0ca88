"""A stage of a study and a round of a stage: what each role does in it, and with what weight. Torch-free."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.components import COMPONENTS, ROLES, Role
from common.names import STAGE_NAME
from common.settings import Settings
from common.tasks import AnyTask, Distil, Task, TrainingTask, unset

BranchName = Literal["source_branch", "target_branch"]
#: rho of a role; above 1 it over-relaxes, which ten times over can only diverge.
Rho = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]


class Stage(Settings):
    """A block of rounds with one purpose.

    Attributes:
        source, target: what sites of that role do in each of these rounds; None: nothing.
        weights: component -> role -> rho in `new = old + sum(rho_role * mean update of the role)`.
            Unset: 1 for the only role that trains the component, 1/2 each where both do.
        begin: branch -> the other branch, whose weights it takes over before the stage's first round.
        aggregator: how the updates of one role's sites become one, see `server.aggregation`.
    """

    name: str = Field(pattern=STAGE_NAME)
    rounds: int = Field(ge=1, le=10_000)
    source: AnyTask | None = None
    target: AnyTask | None = None
    weights: dict[str, dict[Role, Rho]] = Field(default_factory=dict)
    begin: dict[BranchName, BranchName] = Field(default={}, exclude_if=unset)
    # studies that are older than the key keep their hash
    aggregator: Literal["exact_mean", "trimmed_mean"] = Field(default="exact_mean", exclude_if="exact_mean".__eq__)

    def task_of(self, role: Role) -> Task | None:
        """Return what sites of `role` do in this stage."""
        return self.source if role == "source" else self.target

    @property
    def distils(self) -> bool:
        """Whether sites of any role train the student."""
        return any(isinstance(self.task_of(role), Distil) for role in ROLES)

    @property
    def selects_release(self) -> bool:
        """Whether targets score the model that sites receive in its rounds, so that it may be the released one."""
        return self.target is not None and self.target.selects_release

    def rho(self, component: str, role: Role) -> float:
        """Return the weight of `role`'s mean update in the aggregate of `component`."""
        trainers = [r for r in ROLES if (task := self.task_of(r)) and component in task.trains]
        if role not in trainers:
            return 0.0
        return self.weights.get(component, {}).get(role, 1.0 / len(trainers))

    def travel(self, component: str) -> float:
        """Return how far a round moves a weight at most: steps x learning rate x rho, of both roles together."""
        return sum(self.travel_of(component, role) for role in ROLES)

    def travel_of(self, component: str, role: Role) -> float:
        """Return the part of one role in `travel`."""
        task = self.task_of(role)
        if not isinstance(task, TrainingTask) or component not in task.trains:
            return 0.0
        return self.rho(component, role) * task.learning_rate * task.steps

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.source is None and self.target is None:
            raise ValueError(f"stage `{self.name}` gives neither role a task")
        if len(self.begin) > 1 or any(branch == other for branch, other in self.begin.items()):
            raise ValueError(f"stage `{self.name}`: begin gives one branch the weights of the other one")
        for component, roles in self.weights.items():
            if component not in COMPONENTS:
                raise ValueError(f"unknown component `{component}` in weights; known: {', '.join(COMPONENTS)}")
            for role in roles:
                if self.rho(component, role) == 0.0 and roles[role] != 0.0:
                    raise ValueError(f"stage `{self.name}`: {role} sites do not train `{component}`")
        for role in ROLES:
            task = self.task_of(role)
            if task is not None and role not in task.roles:
                why = "a source site has labels" if role == "source" else "it needs labels; a target site has none"
                raise ValueError(f"`{task.task}` is for {' and '.join(task.roles)} sites; {why}")
            if self.distils and task is not None and not isinstance(task, Distil):
                raise ValueError(f"stage `{self.name}`: beside `distil` nothing else is trained, found `{task.task}`")
        return self


@dataclass(frozen=True)
class Round:
    """Where a round stands: `index` of the whole study, `step` of `stage.rounds` within its stage."""

    index: int
    stage: Stage
    step: int

    def learning_rate_progress(self, task: TrainingTask, step: int) -> float:
        """Return how far the stage has come, in [0, 1), before optimizer step `step` of this round."""
        return (self.step * task.steps + step) / (self.stage.rounds * task.steps)
