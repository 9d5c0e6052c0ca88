"""A study followed at a terminal, from its start to its end."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.study import load_study
from server import history
from server.federation import deployment
from server.federation.flower_cli import FlowerCli
from server.history import RoundRecord, losses


def run_to_its_end(
    cli: FlowerCli,
    study_file: Path,
    out: Path,
    *,
    resume: bool,
    console: Console,
    also: Callable[[], None] = lambda: None,
) -> None:
    """Start a study and follow it, a line a round.

    Args:
        also: called after each round.

    Raises:
        RunError: if it fails; what it wrote stays.
        NoLongerFollowing: on Ctrl-C once it was started.
    """
    total = len(load_study(study_file).rounds())
    before = sum(record.counted for record in history.read(out)) if resume else 0
    run_id = deployment.start(cli, study_file, out, resume=resume)
    console.print(f"run {run_id} started; it writes {out}", soft_wrap=True, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} rounds"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("enrolment", total=total, completed=before)

        def on_round(record: RoundRecord) -> None:
            console.print(line(record), soft_wrap=True)
            bar.update(task, description=record.stage, completed=record.round + record.counted)
            also()

        try:
            deployment.follow(cli, run_id, out, on_round)
        except KeyboardInterrupt:
            raise deployment.NoLongerFollowing from None


def line(record: RoundRecord) -> str:
    """One round in one line: what took how long, its losses, and every site that did not do its part."""
    well = sum(site.status == "ok" for site in record.sites.values())
    parts = [f"round {record.round} {record.stage}: {well} of {len(record.sites)} sites, {record.seconds:.1f} s"]
    parts += [
        f"{name} {site.status}: {site.detail or 'no reason given'}"
        for name, site in record.sites.items()
        if site.status != "ok"
    ]
    parts[0] += "".join(f", {task} loss {loss:.3g}" for task, loss in losses(record).items())
    if not record.counted:
        parts.append("it did not count")
    return escape("; ".join(parts))
