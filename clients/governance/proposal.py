"""What a study would do at a site and what would leave it, as plain data: the text that a hospital approves."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from math import prod

import numpy as np

from clients.data.findings import Finding
from clients.data.site import Site
from clients.governance.accountant import Accountant, Charge, charges_of, smaller_cap
from clients.governance.fit import misfits
from clients.governance.limits import Setting, settings_of
from clients.governance.policy import Policy
from clients.node.worker import evaluates
from common.components import ROLES, Role, component_of
from common.masking import least_summed
from common.messages import TaskReply, pack
from common.names import Sha256
from common.networks import Networks
from common.privacy import Privacy
from common.secret_sharing import SHARE_BYTES
from common.stage import Round, Stage
from common.study import Study
from common.tasks import Task, TrainingTask, all_metrics

#: Stands for a hash where only the length of a message counts.
_ANY_HASH: Sha256 = "0" * 64
#: Sites of a role, more than real studies have; each more adds 170 bytes to a reply.
_MASKED_SITES = 100


@dataclass(frozen=True)
class StagePlan:
    """What the site does in one stage.

    Attributes:
        steps: optimizer steps a round; 0 where nothing is trained.
        settings: what the study turns that bears on how much an update tells, each with the policy's bound.
        sends: components whose updates leave in each round.
        sent_bytes: of one round's reply at most, all metrics included.
        metrics: names of the numbers that leave at most, after the policy.
        epsilon: after the stage's first round and after its last, with all that the site spent before;
            None where the stage costs nothing.
    """

    stage: str
    rounds: int
    task: str
    steps: int
    settings: tuple[Setting, ...]
    sends: tuple[str, ...]
    sent_bytes: int
    metrics: tuple[str, ...]
    epsilon: tuple[float, float] | None


@dataclass(frozen=True)
class Budget:
    """What a study with differential privacy would spend at the site.

    Attributes:
        settings: the study's.
        cap: the smaller of the study's and the policy's.
        before: epsilon of all noisy steps that this site sent already, in other studies or in this one.
        alone: epsilon of all of this study's rounds, had the site sent nothing before.
        after: epsilon of both together.
        rounds, rounds_in_cap: training rounds here, and how many of them the cap lets through.
        unbounded: studies without privacy that were answered here; with any, no epsilon bounds all that left.
    """

    settings: Privacy
    cap: float
    before: float
    alone: float
    after: float
    rounds: int
    rounds_in_cap: int
    unbounded: int


@dataclass(frozen=True)
class Proposal:
    """A study as one site would take part in it.

    Attributes:
        rounds: all rounds in which this site does something.
        tensors: component -> tensor name -> shape, of all that would leave.
        patients: as declared, after rounding and cap.
        quorum: role -> least number of sites behind an aggregate.
        summed: least number of updates in any sum that can be learnt, where this site's are summed under masks; else 0.
        budget: of a study with differential privacy, else None.
        warnings: what the least numbers mean, in sentences.
        findings: what the site's policy does not allow; with any, the study cannot be approved.
    """

    study: str
    study_hash: str
    policy_hash: str
    site: str
    role: Role
    rounds: int
    stages: tuple[StagePlan, ...]
    tensors: dict[str, dict[str, tuple[int, ...]]]
    patients: int
    labelled_test: bool
    quorum: dict[str, int]
    summed: int
    budget: Budget | None
    warnings: tuple[str, ...]
    findings: tuple[Finding, ...]

    def settings(self) -> dict[Setting, list[str]]:
        """Return each limited setting with the stages that have it so; one that differs by stage stands in a row."""
        found: dict[Setting, list[str]] = {}
        for stage in self.stages:
            for setting in stage.settings:
                found.setdefault(setting, []).append(stage.stage)
        order = list(dict.fromkeys(setting.key for setting in found))
        return dict(sorted(found.items(), key=lambda item: order.index(item[0].key)))

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics of all stages, each once, in the contract's order."""
        sent = {name for stage in self.stages for name in stage.metrics}
        return tuple(name for name in all_metrics() if name in sent)


def propose(
    study: Study, site: Site, *, today: date, accountant: Accountant | None = None, declared: int = 0
) -> Proposal:
    """Return what `study` would do at `site` and what its policy says to that.

    Args:
        today: UTC, for the policy's expiry.
        accountant: the site's; None stands for one that has spent nothing.
        declared: how many patients the site declared to the study already, see `Answered.declared`; 0: none yet.
    """
    accountant = accountant or Accountant()
    config = site.config
    policy, shapes = config.policy, Networks(study)
    charges, stages = charges_of(study, config.role), []
    for round_ in study.rounds():
        task = round_.stage.task_of(config.role)
        if task is None or round_.step > 0:
            continue
        metrics = tuple(name for name in study.metrics_of(round_.stage, config.role) if policy.permits_metric(name))
        stages.append(
            StagePlan(
                stage=round_.stage.name,
                rounds=round_.stage.rounds,
                task=task.task,
                steps=task.steps if isinstance(task, TrainingTask) else 0,
                settings=tuple(settings_of(study, task, policy)),
                sends=task.trains,
                sent_bytes=_reply_bytes(
                    round_, task, shapes.shapes(task.trains), metrics, masked=study.masks(task, config.role)
                ),
                metrics=metrics,
                epsilon=_epsilon_of_stage(study, round_.stage, charges, accountant),
            )
        )
    tensors: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.shapes(dict.fromkeys(c for s in stages for c in s.sends)).items():
        tensors.setdefault(component_of(name), {})[name] = shape
    quorum = {role: _least(study, role) for role in ROLES if any(s.task_of(role) for s in study.stages)}
    summed = _least_summed(study, config.role)
    return Proposal(
        study=study.name,
        study_hash=study.hash(),
        policy_hash=policy.hash(),
        site=config.name,
        role=config.role,
        rounds=sum(stage.rounds for stage in stages),
        stages=tuple(stages),
        tensors=tensors,
        patients=declared or site.declared_in(study),
        labelled_test=evaluates(site, study),
        quorum={str(role): least for role, least in quorum.items()},
        summed=summed,
        budget=_budget(study, policy, charges, accountant),
        warnings=tuple(_warnings(config.role, quorum, summed)),
        findings=(
            *policy.findings(study, config.role, today=today, sent_bytes={s.stage: s.sent_bytes for s in stages}),
            *misfits(study, site),
        ),
    )


def _epsilon_of_stage(
    study: Study, stage: Stage, charges: Sequence[Charge], accountant: Accountant
) -> tuple[float, float] | None:
    rounds = {round_.index for round_ in study.rounds() if round_.stage.name == stage.name}
    until = [charge for charge in charges if charge.round <= max(rounds)]
    first = [charge for charge in until if charge.round <= min(rounds)]
    if study.privacy is None or not any(charge.round in rounds for charge in until):
        return None
    delta = study.privacy.delta
    return accountant.epsilon(delta, *first), accountant.epsilon(delta, *until)


def _budget(study: Study, policy: Policy, charges: Sequence[Charge], accountant: Accountant) -> Budget | None:
    privacy = study.privacy
    if privacy is None:
        return None
    cap = smaller_cap(privacy, policy.epsilon_cap)

    def after(rounds: int) -> float:
        return accountant.epsilon(privacy.delta, *charges[:rounds])

    return Budget(
        settings=privacy,
        cap=cap,
        before=after(0),
        alone=Accountant().epsilon(privacy.delta, *charges),
        after=after(len(charges)),
        rounds=len(charges),
        rounds_in_cap=bisect_right(range(1, len(charges) + 1), cap, key=after),
        unbounded=len(accountant.unbounded),
    )


def _least_summed(study: Study, role: Role) -> int:
    """Return the least number of updates that a server can learn the sum of, however many sites of a role take part."""
    if role not in study.secure_aggregation:
        return 0
    fewest = study.participation.quorum[role]
    # it grows with the sites but for a step back now and then, none of them beyond the next three
    return min(map(least_summed, range(fewest, fewest + 4)))


def _reply_bytes(
    round_: Round, task: Task, shapes: Mapping[str, tuple[int, ...]], metrics: tuple[str, ...], *, masked: bool
) -> int:
    """Return the most bytes that a reply can have; under masks those among `_MASKED_SITES` sites."""
    header = TaskReply(
        study=_ANY_HASH,
        round=round_.index + round_.stage.rounds,
        stage=round_.stage.name,
        task=task.task,
        request=_ANY_HASH,
        metrics=dict.fromkeys(metrics, -0.12345678901234567e-100),  # as long as a number can be written
        ledger_head=_ANY_HASH,
        shares={f"{number:063}": "0" * 2 * (SHARE_BYTES + 16) for number in range(_MASKED_SITES if masked else 0)},
    )
    frame = len(pack(header, {name: np.zeros((0,), np.float32) for name in shapes}))
    # Each empty tensor above lacks its values, and the digits of its shape and of its place in the blob.
    return frame + sum((8 if masked else 4) * prod(shape) + 40 for shape in shapes.values())


def _least(study: Study, role: Role) -> int:
    """Return the least number of sites of a role behind an aggregate; a quorum of 0 lets one site be all."""
    return max(1, study.participation.quorum.get(role, 0))


def _warnings(here: Role, quorum: Mapping[Role, int], summed: int) -> list[str]:
    """Return what the least number of sites behind an aggregate means, for the person who approves."""
    sentences = []
    for role, least in quorum.items():
        other = "target" if role == "source" else "source"
        if least > 1:
            text = f"Updates of at least {least} {role} hospitals are averaged before anybody receives them."
            if least == 2:
                text += " With two, each of the two can subtract its own and see the other's."
        elif role == here:
            text = (
                f"One {role} hospital is enough for a round. If you are the only one, every {other} hospital receives "
                "your own model, averaged with nobody else's."
            )
        else:
            text = (
                f"One {role} hospital is enough for a round. If there is only one, every {here} hospital, you "
                "included, receives that hospital's own model."
            )
        sentences.append(text)
    if summed:
        sentences.append(
            f"The coordinator learns no single {here} hospital's updates, but the numbers of each. Where a hospital is "
            "missing in one of two rounds under nearly the same weights, the difference of the two sums is about that "
            "hospital's part, blurred by what differs between the rounds."
        )
    else:
        sentences.append(
            "The coordinator sees each site's updates before they are averaged, and your site cannot check how many "
            "were."
        )
    return sentences
