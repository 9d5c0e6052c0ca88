"""What can leave a site at all, or in one study: the privacy officer's table, made from the contract. Torch-free.

`crossprobe site approve` says the same of one site under its own policy, which can only take away from this.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from clients.governance.glossary import COMPONENTS, FIELDS, MESSAGES, TASKS, explain_together
from common.contract import METRICS, ROLES, EnrolReply, Message, Refusal, Role, TaskReply
from common.study import Study
from common.tasks import TASKS as TASK_SETTINGS
from common.tasks import AnyTask, TrainingTask

#: Every message that a site can send; a new one needs its line in `clients.governance.glossary`.
REPLIES: tuple[type[Message], ...] = (EnrolReply, TaskReply, Refusal)
#: Stands for the numbers of an evaluation, one for each combination.
EVALUATION = "PREDICTOR/MEASURE/STATISTIC"


@dataclass(frozen=True)
class Leaving:
    """What one task lets leave.

    Attributes:
        where: stage, role and rounds, or empty for the task in any study.
        sends: components whose changes leave, at most.
        metrics: names of the numbers that leave, at most.
    """

    where: str
    task: str
    sends: tuple[str, ...]
    metrics: tuple[str, ...]


def possible_metrics(study: Study, task: AnyTask, role: Role) -> tuple[str, ...]:
    """Return the metrics that a task can send in this study from a site of `role`, before its policy."""
    if study.privacy is not None and isinstance(task, TrainingTask):
        return ()
    with_baseline = "baseline" in study.initial
    elsewhere = "score" if role == "source" else "val_dice"  # the two roles' answers to the task `score`
    return tuple(
        name
        for name in METRICS[task.task]
        if name != elsewhere and (with_baseline or not (name.startswith("baseline/") or "difference" in name))
    )


def of_contract() -> list[Leaving]:
    """Return what each task can let leave, whatever the study."""
    trainable = {str(settings.model_fields["task"].default): settings.trainable for settings in TASK_SETTINGS}
    return [Leaving("", task, trainable[task], METRICS[task]) for task in METRICS]


def of_study(study: Study, roles: Iterable[Role] = ROLES) -> list[Leaving]:
    """Return what each stage of a study lets leave a site of one of `roles`."""
    wanted, found = tuple(roles), []
    for round_ in study.rounds():
        stage = round_.stage
        for role in wanted if round_.step == 0 else ():
            task = stage.task_of(role)
            if task is not None:
                rounds = f"{stage.rounds} round{'s' if stage.rounds > 1 else ''}"
                where = f"{stage.name}, {role} sites, {rounds}"
                found.append(Leaving(where, task.task, task.trains, possible_metrics(study, task, role)))
    return found


def page(leaving: Iterable[Leaving], study: Study | None = None) -> str:
    """Return the tables as Markdown: messages, tasks, and what each name means."""
    rows = list(leaving)
    lines = [f"Study `{study.name}`, hash `{study.hash()}`.", ""] if study else []
    lines += ["| message | what is in it |", "| --- | --- |"]
    shared = set.intersection(*(set(reply.model_fields) for reply in REPLIES))
    lines.append(f"| every one | {_fields(shared)} |")
    for reply in REPLIES:
        kind = str(reply.model_fields["kind"].default)
        lines.append(f"| `{kind}`, {MESSAGES[kind]} | {_fields(set(reply.model_fields) - shared)} |")
    lines += ["", "| task | changes to networks, at most | numbers, at most |", "| --- | --- | --- |"]
    for row in rows:
        title = f"{row.where}: `{row.task}`" if row.where else f"`{row.task}`"
        lines.append(f"| {title} {TASKS[row.task]} | {_codes(row.sends)} | {_codes(_short(row.metrics))} |")
    lines += ["", "| name | what it is |", "| --- | --- |"]
    sent = {name for row in rows for name in row.sends}
    lines += [f"| `{name}` | {meaning} |" for name, meaning in COMPONENTS.items() if name in sent]
    lines += [f"| {name} | {meaning} |" for name, meaning in _numbers(name for row in rows for name in row.metrics)]
    return "\n".join([*lines, ""])


def _fields(names: Iterable[str]) -> str:
    return "; ".join(f"`{name}` {FIELDS[name]}" for name in sorted(names, key=list(FIELDS).index))


def _short(metrics: Iterable[str]) -> list[str]:
    """Return names with all those of an evaluation, about 150, as one."""
    return list(dict.fromkeys(EVALUATION if "/" in name else name for name in metrics))


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _numbers(metrics: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield a row of name and meaning, with all that one part of an evaluation's names can be in one row."""
    parts: dict[str, list[str]] = {}
    for name, meaning in explain_together(dict.fromkeys(metrics)):
        if name.startswith(" "):
            part, word = name.split()
            parts.setdefault(part, []).append(f"`{word}` {meaning}")
        else:
            yield f"`{name}`", meaning
    yield from ((part, "; ".join(words)) for part, words in parts.items())
