"""What the researcher's commands show while they work, and of a run at its end."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

if TYPE_CHECKING:
    from common.study import Study
    from simulations.simulate import Progress


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """Bars on stderr, with counts and the time that passed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        yield bar


def counter(bar: Bar, text: str) -> Callable[[int, int], None]:
    """Return a progress callback whose bar appears with the first call: what is cached shows none."""
    tasks: list[Any] = []

    def show(done: int, total: int) -> None:
        if not tasks:
            tasks.append(bar.add_task(text))
        bar.update(tasks[0], completed=done, total=total)

    return show


def simulate_and_show(
    study: "Study",
    folders: Sequence[Path],
    out: Path,
    *,
    resume: bool,
    command: str,
    as_json: bool,
    threads: int | None = None,
    tensorboard: Path | None = None,
) -> None:
    """Run the comparison with live progress and print what it found."""
    from server.tensorboard import following
    from simulations.simulate import simulate

    with progress_bar() as bar, following(out, tensorboard) as follow:
        task = bar.add_task("starting Flower", total=None)
        shown = -1

        def show(progress: "Progress") -> None:
            nonlocal shown
            bar.update(task, description=_describe(progress), completed=progress.done, total=progress.total)
            if not bar.console.is_terminal and progress.done != shown:  # a log gets a line a round
                bar.console.print(
                    f"{progress.done}/{progress.total} {_describe(progress)}", highlight=False, soft_wrap=True
                )
            if progress.done != shown:
                follow()
            shown = progress.done

        summary = simulate(study, folders, out, threads=threads, resume=resume, command=command, on_progress=show)
    if as_json:
        print(json.dumps(summary, indent=1))
    else:
        console = Console()
        console.print(_table(summary))
        said = f"{summary['wall_s']:.0f} s. Look next at {out / 'report.html'} and {out / 'summary.json'}"
        console.print(said, soft_wrap=True, markup=False)  # a path that is to be copied stays on its line


def _describe(progress: "Progress") -> str:
    last = progress.last
    if last is None:
        return f"{progress.study}: first round"
    losses = [f"{site} {s.metrics['loss']:.3f}" for site, s in last.sites.items() if "loss" in s.metrics]
    return f"{progress.study}: {last.stage}, round {last.round}; loss {', '.join(losses) or '-'}"


def _table(summary: dict[str, Any]) -> Table:
    from common.metric_name import PREDICTORS

    table = Table(title="Dice on test patients, %")
    table.add_column("site")
    table.add_column("predictor")
    table.add_column("Dice", justify="right")
    table.add_column("difference to baseline [95 %]", justify="right")
    for site, dice in summary["dice"].items():
        for row, predictor in enumerate(p for p in PREDICTORS if p in dice):
            found = summary["difference_to_baseline"].get(site, {}).get(predictor)
            text = ""
            if found:
                low, high = (100 * x for x in found["ci95"])
                text = f"{100 * found['mean']:+.1f} [{low:+.1f}, {high:+.1f}]"
            name = (site, f"({summary['roles'][site]})")[row] if row < 2 else ""
            table.add_row(name, predictor, f"{100 * dice[predictor]['mean']:.1f}", text)
        table.add_section()
    return table
