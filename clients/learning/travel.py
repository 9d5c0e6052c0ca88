"""How far can a study's own rounds have moved the weights since this site saw them last? No farther may they be.

A site knows every stage of the study that it approved, of both roles: steps, learning rates and the roles' weights. A
step of Adam moves a number by about its rate at most, an average of sites by no more than the farthest of them, and the
server adds rho times that. So what a request brings lies within a distance of what this site was sent before that
follows from its own copy of the study alone; before the first round, of the seeded weights. The fewer and smaller the
steps behind an update, and the more that update is a copy of images therefore, the closer the weights have to stay to
those that the site knows: whoever wants others has to ask for them step by step, in rounds that train. How much farther
a round may go than a site's own update does is bounded by its policy (`max_travel`, `max_travel_ratio`).

This bounds the way, not where it leads: over many rounds of many steps it allows everything. Then only
`clients.learning.plausibility` looks.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from clients.governance.received import Received
from clients.learning.training import annealed
from common.components import FUSED, ROLES, Tensors, component_of, select
from common.errors import ContractError
from common.stage import Round
from common.study import Study
from common.tasks import Task, TrainingTask

#: Most that a step moves a number, in units of the learning rate, on average over a round. Adam's first step is one of
#: signs, 1; where gradients grow one can be more. What honest training uses: docs/threat-model.md, T4.
STEP = 2.0
#: What rounding and another machine's arithmetic may add; seeded weights have a spread of 0.02 to 1.
ROUNDING = 1e-5


class Travel:
    """The ways that a study's weights can go.

    Args:
        study: the site's own copy.
        initial: the study's seeded weights; components that it brings from elsewhere have no known beginning.
    """

    def __init__(self, study: Study, initial: Mapping[str, np.ndarray]) -> None:
        self.rounds, self.initial = study.rounds(), initial
        self.given = study.given
        scoring = (r.index for r in self.rounds if r.stage.selects_release)
        #: The first round whose model can be released, and so come back.
        self.first_released = next(scoring, len(self.rounds))

    def check(self, tensors: Tensors, round_: Round, task: Task, received: Received) -> None:
        """Check what a request brings of a task's components.

        Raises:
            ContractError: `implausible-weights`, with what is how far off; the text stays in the site's log.
        """
        found = [
            f"{name}: expected a way of {most:.3g} at most since it was known, found {way:.3g}"
            for name, way, most in self.ways(tensors, round_, task, received)
            if not way <= most  # also what is no number
        ]
        if found:
            raise ContractError("implausible-weights", "; ".join(found[:3]) + f" ({len(found)} tensors in all)")

    def ways(
        self, tensors: Tensors, round_: Round, task: Task, received: Received
    ) -> Iterator[tuple[str, float, float]]:
        """Yield each tensor that has a known past with how far its farthest number went, and how far it may."""
        allowed = {name: self._allowed(name, round_, task, received.rounds) for name in task.components()}
        for name, x in select(tensors, allowed).items():
            own = component_of(name)
            origin, most, remembered = allowed[own]
            if most is None:
                continue
            past = (received.tensors if remembered else self.initial)[origin + name.removeprefix(own)]
            # the farthest number: a mean would let a few of them go anywhere
            yield name, float(np.abs(x.astype(np.float64) - past).max(initial=0.0)), most + ROUNDING

    def _allowed(
        self, component: str, round_: Round, task: Task, known: Mapping[str, int]
    ) -> tuple[str, float | None, bool]:
        """Return whose past a component has, how far it may have gone since, or None, and whether that was received."""
        ways = list(self._back(component, round_.index))
        seen = [(name, index, way) for name, index, way in ways if index < round_.index and known.get(name) == index]
        remembered = bool(seen)
        origin, since, way = seen[0] if seen else ways[-1]
        if not remembered and origin in self.given:
            return origin, None, remembered
        if self._may_come_back(component, since, round_, task):
            # From what was known back to what was released, and on from there: each round at most once.
            # No branch began as the other one in between, as a study sees to.
            way += sum(self._moved(component, index) for index in range(min(self.first_released, since), since))
        return origin, way, remembered

    def _back(self, component: str, index: int) -> Iterator[tuple[str, int, float]]:
        """Yield whose weights those of a component were in each earlier round, to the first, and how far they went."""
        way = 0.0
        while True:
            yield component, index, way
            if (other := self._begun_from(component, index)) != component:
                component = other
                yield component, index, way
            if index == 0:
                return
            index -= 1
            way += self._moved(component, index)

    def _may_come_back(self, component: str, since: int, round_: Round, task: Task) -> bool:
        """Whether an older, released model may have taken the place of what a site saw in round `since`."""
        undone = (r.stage.target for r in self.rounds[since : round_.index])
        return component in FUSED and (
            task.of_released
            or any(target is not None and target.selects_release and target.trains for target in undone)
        )

    def _begun_from(self, component: str, index: int) -> str:
        """Return whose weights a component has when a round begins, see `Stage.begin`."""
        round_ = self.rounds[index]
        branch, dot, half = component.partition(".")
        other = round_.stage.begin.get(branch) if round_.step == 0 and dot else None  # type: ignore[call-overload]
        return component if other is None else f"{other}.{half}"

    def _moved(self, component: str, index: int) -> float:
        """Return how far a round can move a number of a component."""
        round_, way = self.rounds[index], 0.0
        for role in ROLES:
            task = round_.stage.task_of(role)
            if isinstance(task, TrainingTask):
                annealing = annealed(round_.learning_rate_progress(task, 0))
                way += STEP * annealing * round_.stage.travel_of(component, role)
        return way
