"""The page that a hospital reads before it approves a study: a `Proposal` in plain words, on a terminal."""

from math import prod

from rich.console import Console
from rich.table import Table

from clients.glossary import COMPONENTS, TASKS, explain_together
from clients.proposal import Proposal


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
        out(f"  {task}: {TASKS[task]}")

    leaves = _table("\nWhat would leave: changes to these networks", ("component", "tensors", "numbers", "what it is"))
    for component, shapes in proposal.tensors.items():
        values = sum(prod(shape) for shape in shapes.values())
        leaves.add_row(component, str(len(shapes)), f"{values:,}", COMPONENTS[component])
    out(leaves)
    alike: dict[str, list[str]] = {}  # both branches are one kind of network: their names are listed once
    for component, shapes in proposal.tensors.items():
        alike.setdefault(", ".join(name.partition("/")[2] for name in shapes), []).append(component)
    for names, components in alike.items():
        out(f"  {' and '.join(components)}: {names}", highlight=False)

    numbers = _table("\nWhat would leave: numbers, at most", ("name", "what it says"))
    for name, meaning in explain_together(proposal.metrics):
        numbers.add_row(name, meaning)
    out(numbers)

    tested = "takes part in the evaluation" if proposal.labelled_test else "has too few labelled test patients for it"
    out(f"\nYour site declares {proposal.patients} training patients, fixed for the study, and {tested}.")
    out(
        "No image, label, file name or patient number leaves. What the changes to the networks could still tell "
        "about single patients is not bounded in this study: it has no differential privacy.\n"
    )
    out("[bold]Who stands behind what others receive[/bold]")
    for sentence in proposal.warnings:
        out(f"  {sentence}")
    out()


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
