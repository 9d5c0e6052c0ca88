"""The page that a hospital reads before it approves a study: a `Proposal` in plain words, on a terminal."""

from math import prod

from rich.console import Console
from rich.table import Table

from clients.governance.approval_words import declared, of_budget, what_it_tells
from clients.governance.disclosure import explain
from clients.governance.proposal import Budget, Proposal
from common.components import MEANINGS
from common.tasks import TASKS


def show(proposal: Proposal, console: Console) -> None:
    """Print what a study would do at the site and what would leave it."""
    out = console.print
    out(f"[bold]Study {proposal.study}[/bold] at {proposal.site}, a {proposal.role} site")
    out(f"study hash  {proposal.study_hash}\npolicy hash {proposal.policy_hash}\n")

    plan = _table(
        f"What would be done here: {proposal.rounds} rounds",
        ("stage", "rounds", "task", "steps a round", "bytes sent a round, at most"),
    )
    for stage in proposal.stages:
        steps = f"{stage.steps:,}" if stage.steps else "-"
        plan.add_row(stage.stage, str(stage.rounds), stage.task, steps, f"{stage.sent_bytes:,}")
    out(plan)
    for task in dict.fromkeys(stage.task for stage in proposal.stages):
        out(f"  {task}: {TASKS[task].meaning}")

    turned = _table(
        "\nWhat decides how much a change to a network tells of one patient",
        ("setting", "in this study", "stages", "your policy's bound", "its key"),
    )
    turned.columns[-1].no_wrap = True  # to be found again in site.yaml
    for setting, stages in proposal.settings().items():
        bound = f"at {'least' if setting.least else 'most'} {setting.bound:g}"
        value = f"{setting.value:g}" if setting.allowed else f"[bold red]{setting.value:g} (refused)[/]"
        turned.add_row(setting.words, value, ", ".join(stages), bound, setting.key)
    out(turned)

    leaves = _table("\nWhat would leave: changes to these networks", ("component", "tensors", "numbers", "what it is"))
    for component, shapes in proposal.tensors.items():
        values = sum(prod(shape) for shape in shapes.values())
        leaves.add_row(component, str(len(shapes)), f"{values:,}", MEANINGS[component])
    out(leaves)
    alike: dict[str, list[str]] = {}  # both branches are one kind of network: their names are listed once
    for component, shapes in proposal.tensors.items():
        alike.setdefault(", ".join(name.partition("/")[2] for name in shapes), []).append(component)
    for names, components in alike.items():
        out(f"  {' and '.join(components)}: {names}", highlight=False)

    numbers = _table("\nWhat would leave: numbers, at most", ("name", "what it says"))
    for name, meaning in explain(proposal.metrics):
        numbers.add_row(name, meaning)
    out(numbers)

    out(f"\n{declared(proposal)}")
    out(f"{what_it_tells(proposal)}\n")
    if proposal.budget is not None:
        _show_budget(proposal, proposal.budget, console)
    out("[bold]Who stands behind what others receive[/bold]")
    for sentence in proposal.warnings:
        out(f"  {sentence}")
    out()


def _show_budget(proposal: Proposal, budget: Budget, console: Console) -> None:
    """Print what the study would spend of the site's privacy budget."""
    out = console.print
    costs = _table("Differential privacy, by patient: epsilon", ("stage", "after its first round", "at its end"))
    for stage in proposal.stages:
        if stage.epsilon is not None:
            costs.add_row(stage.stage, *(f"{epsilon:.3f}" for epsilon in stage.epsilon))
    out(costs)
    for sentence in of_budget(budget):
        out(sentence)
    out()


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
