"""What can leave a site at all, or in one study: the privacy officer's table, made from the contract. Torch-free.

`crossprobe site approve` says the same of one site under its own policy, which can only take away from this.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from common.components import MEANINGS, ROLES, Role
from common.messages import REPLIES, Header
from common.metric_name import MEASURES, PREDICTORS, SHARES, STATISTICS, MetricName
from common.study import Study
from common.tasks import TASKS, all_metrics

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


def explain(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return a row of name and sentence for each number, those of an evaluation by their parts.

    An evaluation has about 150 numbers, one for each predictor, measure and statistic; what each part
    means is 18 rows. Every name still stands in the machine-readable output.
    """
    listed, metrics = list(names), all_metrics()
    parsed = [name for name in map(MetricName.parse, listed) if name is not None]
    rows = [(name, metrics[name].meaning) for name in listed if MetricName.parse(name) is None]
    if parsed:
        rows.append((EVALUATION, "of the evaluation, one number for each combination of:"))
        for title, words, used in (
            ("PREDICTOR", PREDICTORS, {name.predictor for name in parsed}),
            ("MEASURE", MEASURES | SHARES, {name.measure for name in parsed}),
            ("STATISTIC", STATISTICS, {name.statistic for name in parsed}),
        ):
            rows += [(f"  {title} {word}", meaning) for word, meaning in words.items() if word in used]
    return rows


def of_contract() -> list[Leaving]:
    """Return what each task can let leave, whatever the study."""
    return [Leaving("", name, task.trainable, tuple(task.metrics)) for name, task in TASKS.items()]


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
                found.append(Leaving(where, task.task, task.trains, study.metrics_of(stage, role)))
    return found


def page(leaving: Iterable[Leaving], study: Study | None = None) -> str:
    """Return the tables as Markdown: messages, tasks, and what each name means."""
    rows = list(leaving)
    lines = [f"Study `{study.name}`, hash `{study.hash()}`.", ""] if study else []
    lines += ["| message | what is in it |", "| --- | --- |"]
    shared = set.intersection(*(set(reply.model_fields) for reply in REPLIES))
    lines.append(f"| every one | {_fields(REPLIES[0], shared)} |")
    for reply in REPLIES:
        kind = str(reply.model_fields["kind"].default)
        lines.append(f"| `{kind}`, {reply.when} | {_fields(reply, set(reply.model_fields) - shared)} |")
    lines += ["", "| task | changes to networks, at most | numbers, at most |", "| --- | --- | --- |"]
    for row in rows:
        title = f"{row.where}: `{row.task}`" if row.where else f"`{row.task}`"
        lines.append(f"| {title} {TASKS[row.task].meaning} | {_codes(row.sends)} | {_codes(_short(row.metrics))} |")
    lines += ["", "| name | what it is |", "| --- | --- |"]
    sent = {name for row in rows for name in row.sends}
    lines += [f"| `{name}` | {meaning} |" for name, meaning in MEANINGS.items() if name in sent]
    lines += [f"| {name} | {meaning} |" for name, meaning in _numbers(name for row in rows for name in row.metrics)]
    return "\n".join([*lines, ""])


def _fields(header: type[Header], names: Iterable[str]) -> str:
    wanted = set(names)
    fields = header.model_fields.items()
    return "; ".join(f"`{name}` {field.description}" for name, field in fields if name in wanted)


def _short(metrics: Iterable[str]) -> list[str]:
    """Return names with all those of an evaluation, about 150, as one."""
    return list(dict.fromkeys(EVALUATION if "/" in name else name for name in metrics))


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _numbers(metrics: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield a row of name and meaning, with all that one part of an evaluation's names can be in one row."""
    parts: dict[str, list[str]] = {}
    for name, meaning in explain(dict.fromkeys(metrics)):
        if name.startswith(" "):
            part, word = name.split()
            parts.setdefault(part, []).append(f"`{word}` {meaning}")
        else:
            yield f"`{name}`", meaning
    yield from ((part, "; ".join(words)) for part, words in parts.items())
