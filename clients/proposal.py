"""What a study would do at a site and what would leave it, as plain data: the text that a hospital approves."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from math import prod

import numpy as np

from clients.findings import Finding
from clients.site import Site
from common.contract import METRICS, ROLES, Role, Sha256, TaskReply, component_of, pack
from common.networks import Networks
from common.study import Round, Study
from common.tasks import AnyTask, TrainingTask

#: Stands for a hash where only the length of a message counts.
_ANY_HASH: Sha256 = "0" * 64


@dataclass(frozen=True)
class StagePlan:
    """What the site does in one stage.

    Attributes:
        steps: optimizer steps a round; 0 where nothing is trained.
        sends: components whose updates leave in each round.
        sent_bytes: of one round's reply at most, all metrics included.
        metrics: names of the numbers that leave at most, after the policy.
    """

    stage: str
    rounds: int
    task: str
    steps: int
    sends: tuple[str, ...]
    sent_bytes: int
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Proposal:
    """A study as one site would take part in it.

    Attributes:
        rounds: all rounds in which this site does something.
        tensors: component -> tensor name -> shape, of all that would leave.
        patients: as declared, after rounding and cap.
        quorum: role -> least number of sites behind an aggregate.
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
    warnings: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics of all stages, each once, in the contract's order."""
        sent = {name for stage in self.stages for name in stage.metrics}
        return tuple(dict.fromkeys(name for names in METRICS.values() for name in names if name in sent))


def propose(study: Study, site: Site, *, today: date) -> Proposal:
    """Return what `study` would do at `site` and what its policy says to that.

    Args:
        today: UTC, for the policy's expiry.
    """
    config = site.config
    policy, shapes = config.policy, Networks(study)
    stages = []
    for round_ in study.rounds():
        task = round_.stage.task_of(config.role)
        if task is None or round_.step > 0:
            continue
        metrics = tuple(name for name in _possible(study, task, config.role) if policy.permits_metric(name))
        stages.append(
            StagePlan(
                stage=round_.stage.name,
                rounds=round_.stage.rounds,
                task=task.task,
                steps=task.steps if isinstance(task, TrainingTask) else 0,
                sends=task.trains,
                sent_bytes=_reply_bytes(round_, task, shapes.shapes(task.trains), metrics),
                metrics=metrics,
            )
        )
    tensors: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.shapes(dict.fromkeys(c for s in stages for c in s.sends)).items():
        tensors.setdefault(component_of(name), {})[name] = shape
    quorum = {role: _least(study, role) for role in ROLES if any(s.task_of(role) for s in study.stages)}
    return Proposal(
        study=study.name,
        study_hash=study.hash(),
        policy_hash=policy.hash(),
        site=config.name,
        role=config.role,
        rounds=sum(stage.rounds for stage in stages),
        stages=tuple(stages),
        tensors=tensors,
        patients=policy.declared_patients(len(site.patients("train"))),
        labelled_test=len(site.patients("test", labelled=True)) >= policy.min_patients,
        quorum={str(role): least for role, least in quorum.items()},
        warnings=tuple(_warnings(config.role, quorum)),
        findings=(
            *policy.findings(study, config.role, today=today, sent_bytes={s.stage: s.sent_bytes for s in stages}),
            *_misfits(study, site),
        ),
    )


def _misfits(study: Study, site: Site) -> Iterator[Finding]:
    """Yield why the site's images could not be used in the study."""
    if study.image.geometry == "spacing" and not site.has_spacing:
        yield Finding(
            "no-spacing",
            "manifest.csv",
            "expected spacing_mm for every image, since the study resamples by it; found none",
            "Fill it in, or ask the coordinator for a study with `geometry: letterbox`",
        )
    if not any(stage.task_of(site.config.role) for stage in study.stages):
        yield Finding(
            "no-task",
            f"study {study.name}",
            f"expected a task for {site.config.role} sites, found none",
            "Ask the coordinator whether this is the right study",
        )


def _possible(study: Study, task: AnyTask, role: Role) -> tuple[str, ...]:
    """Return the metrics that a task can send in this study from a site of `role`."""
    with_baseline = "baseline" in study.initial
    elsewhere = "score" if role == "source" else "val_dice"  # the two roles' answers to the task `score`
    return tuple(
        name
        for name in METRICS[task.task]
        if name != elsewhere and (with_baseline or not (name.startswith("baseline/") or "difference" in name))
    )


def _reply_bytes(round_: Round, task: AnyTask, shapes: Mapping[str, tuple[int, ...]], metrics: tuple[str, ...]) -> int:
    """Return the most bytes that a reply can have."""
    header = TaskReply(
        study=_ANY_HASH,
        round=round_.index + round_.stage.rounds,
        stage=round_.stage.name,
        task=task.task,
        request=_ANY_HASH,
        metrics=dict.fromkeys(metrics, -0.12345678901234567e-100),  # as long as a number can be written
        ledger_head=_ANY_HASH,
    )
    frame = len(pack(header, {name: np.zeros((0,), np.float32) for name in shapes}))
    # Each empty tensor above lacks its values, and the digits of its shape and of its place in the blob.
    return frame + sum(4 * prod(shape) + 40 for shape in shapes.values())


def _least(study: Study, role: Role) -> int:
    """Return the least number of sites of a role behind an aggregate; a quorum of 0 lets one site be all."""
    return max(1, study.participation.quorum.get(role, 0))


def _warnings(own: Role, quorum: Mapping[Role, int]) -> list[str]:
    """Return what the least number of sites behind an aggregate means, for the person who approves."""
    sentences = []
    for role, least in quorum.items():
        other = "target" if role == "source" else "source"
        if least > 1:
            text = f"Updates of at least {least} {role} hospitals are averaged before anybody receives them."
            if least == 2:
                text += " With two, each of the two can subtract its own and see the other's."
        elif role == own:
            text = (
                f"One {role} hospital is enough for a round. If you are the only one, every {other} hospital receives "
                "your own model, averaged with nobody else's."
            )
        else:
            text = (
                f"One {role} hospital is enough for a round. If there is only one, every {own} hospital, you "
                "included, receives that hospital's own model."
            )
        sentences.append(text)
    sentences.append(
        "The coordinator sees each site's updates before they are averaged, and your site cannot check how many were."
    )
    return sentences
