"""The researcher's commands: demo, simulate, ablate, phantom and import."""

import argparse
import json
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from clients.data.manifest import Role
from common.contract import PREDICTORS

if TYPE_CHECKING:
    from common.study import Study

RAW = argparse.RawDescriptionHelpFormatter
CONSOLE = Console()


def main(command: str, arguments: list[str]) -> int:
    """Run one of this module's commands and return its exit code."""
    commands = {"demo": _demo, "simulate": _simulate, "ablate": _ablate, "phantom": _phantom, "import": _import}
    return commands[command](arguments)


def _demo(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="crossprobe demo",
        description=(
            "Writes one labelled and one unlabelled phantom site, trains the baseline and the whole method on\n"
            "Flower, evaluates both and writes OUT/summary.json and OUT/report.html."
        ),
        formatter_class=RAW,
        epilog="examples:\n  crossprobe demo\n  crossprobe demo --seed 1 --out runs/second\n  crossprobe demo --resume",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default: %(default)s)")
    parser.add_argument("--study", type=Path, default=Path("configs/demo.yaml"), help="default: %(default)s")
    _add_run_options(parser)
    chosen = parser.parse_args(arguments)

    from simulations.phantom.demo import write_sites

    study = _seeded_study(chosen)
    with _bar() as bar:
        folders = write_sites(
            chosen.out / "sites",
            source=["lumify_like"],
            target=["telemed_like"],
            seed=study.seed,
            workers=os.cpu_count() or 1,
            overwrite=True,
            on_site=lambda name: _counter(bar, f"phantom {name}"),
        )
    command = shlex.join(["crossprobe", "demo", *arguments])
    return _run(study, folders, chosen.out, resume=chosen.resume, command=command, as_json=chosen.json)


def _simulate(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="crossprobe simulate",
        description="Run a study and its baseline over site folders on this machine, on Flower's simulation engine.",
        formatter_class=RAW,
        epilog=(
            "examples:\n  crossprobe simulate configs/demo.yaml --sites runs/demo/sites/* --out runs/again\n"
            "  crossprobe simulate configs/busbra.yaml --sites busbra/ge-logiq7 busbra/toshiba-aplio300"
        ),
    )
    parser.add_argument("study", type=Path, help="study file (YAML)")
    parser.add_argument("--sites", type=Path, nargs="+", required=True, help="site folders, any number of each role")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/NAME of the study)")
    _add_run_options(parser)
    chosen = parser.parse_args(arguments)
    study = _seeded_study(chosen)
    out = chosen.out or Path("runs") / study.name
    command = shlex.join(["crossprobe", "simulate", *arguments])
    return _run(study, chosen.sites, out, resume=chosen.resume, command=command, as_json=chosen.json)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, help="instead of the study's; the demo's phantom follows it")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--json", action="store_true", help="print the summary for machines")


def _seeded_study(chosen: argparse.Namespace) -> "Study":
    from common.study import load_study

    study = load_study(chosen.study)
    return study if chosen.seed is None else study.model_copy(update={"seed": chosen.seed})


def _ablate(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="crossprobe ablate",
        description=(
            "Trains and measures the method's variants on every data set with every seed. Stages that variants share\n"
            "are trained once. Start it again to go on where it was stopped; OUT/ablation.log tells where it is.\n"
            "The networks compute on a GPU where torch sees one; put CUDA_VISIBLE_DEVICES= in front to hide it."
        ),
        formatter_class=RAW,
        epilog=(
            "examples:\n  crossprobe ablate configs/ablation-phantom.yaml\n"
            "  crossprobe ablate configs/ablation-busbra.yaml --jobs 1 --publish docs/results"
        ),
    )
    parser.add_argument("ablation", type=Path, help="ablation file (YAML)")
    parser.add_argument("--out", type=Path, help="folder of the ablation (default: runs/NAME)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--publish", type=Path, metavar="DIR", help="put tables and charts into DIR and write DIR.md")
    parser.add_argument("--json", action="store_true", help="print the summary for machines")
    chosen = parser.parse_args(arguments)
    if chosen.jobs < 1:
        parser.error("--jobs must be at least 1")

    from simulations.ablation.cells import load_ablation, run_ablation
    from simulations.ablation.page import print_summary, publish
    from simulations.ablation.results import write_page

    ablation = load_ablation(chosen.ablation)
    out = chosen.out or Path("runs") / ablation.name
    with _bar() as bar:
        show = _counter(bar, f"variants of {ablation.name}")
        summary = run_ablation(ablation, out, chosen.jobs, show)
    summary["command"] = shlex.join(["crossprobe", "ablate", *arguments])
    if chosen.publish:
        publish(summary, chosen.publish)
        print(write_page(chosen.publish))
    if chosen.json:
        print(json.dumps(summary, indent=1))
    else:
        print_summary(summary, CONSOLE)
    return 0


def _phantom(arguments: list[str]) -> int:
    from simulations.phantom.demo import FRAMES, PATIENTS
    from simulations.phantom.devices import PROFILES

    parser = argparse.ArgumentParser(
        prog="crossprobe phantom",
        description="Write site folders of simulated paediatric wrists, seen with simulated devices.",
        formatter_class=RAW,
        epilog=(
            f"profiles: {', '.join(PROFILES)}\n\n"
            "examples:\n  crossprobe phantom runs/sites --source lumify_like --target telemed_like\n"
            "  crossprobe phantom runs/many --source lumify_like --source lumify_like --target telemed_like --train 20"
        ),
    )
    parser.add_argument("out", type=Path, help="folder to write the site folders into")
    for role in ("source", "target"):
        parser.add_argument(
            f"--{role}", action="append", default=[], metavar="PROFILE", choices=PROFILES, help=f"a {role} site; repeat"
        )
    for split in ("train", "calibrate", "val", "test"):
        parser.add_argument(f"--{split}", type=int, metavar="N", help=f"{split} patients a site")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames a patient (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace other phantom sites of these names")
    chosen = parser.parse_args(arguments)
    if not chosen.source and not chosen.target:
        parser.error("give at least one --source or --target")

    from simulations.phantom.demo import write_sites

    counts: dict[Role, Any] = {
        role: {s: n if getattr(chosen, s) is None else getattr(chosen, s) for s, n in own.items()}
        for role, own in PATIENTS.items()
    }
    with _bar() as bar:
        folders = write_sites(
            chosen.out,
            source=chosen.source,
            target=chosen.target,
            seed=chosen.seed,
            patients=counts,
            frames=chosen.frames,
            workers=os.cpu_count() or 1,
            overwrite=chosen.overwrite,
            on_site=lambda name: _counter(bar, name),
        )
    for folder in folders:
        print(folder)
    return 0


def _import(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="crossprobe import",
        description="Make site folders from a public data set. The data set itself is yours to get and to cite.",
        formatter_class=RAW,
        epilog=(
            "examples:\n  crossprobe import busbra ~/busbra runs/busbra\n"
            "  BUSBRA_DIR=~/busbra crossprobe import busbra runs/busbra\n"
            "  crossprobe import busbra ~/busbra runs/busbra-logiq5-unlabelled --target ge-logiq5"
        ),
    )
    parser.add_argument("dataset", choices=["busbra"], help="BUS-BRA, doi:10.1002/mp.16812, a subset by scanner")
    parser.add_argument("folders", type=Path, nargs="+", metavar="[DIR] OUT", help="DIR defaults to $BUSBRA_DIR")
    parser.add_argument("--seed", type=int, default=0, help="of the split by patient (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier import")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="SITE",
        choices=["ge-logiq7", "ge-logiq5"],
        help="a labelled scanner that plays an unlabelled one: only its test patients keep their masks; repeat",
    )
    chosen = parser.parse_args(arguments)

    from simulations.importers.busbra import import_busbra

    *given, out = chosen.folders
    if len(given) > 1 or (not given and not os.environ.get("BUSBRA_DIR")):
        parser.error("give DIR and OUT, or set BUSBRA_DIR and give OUT")
    source = given[0] if given else Path(os.environ["BUSBRA_DIR"])
    for folder in import_busbra(source, out, seed=chosen.seed, overwrite=chosen.overwrite, targets=chosen.target):
        print(folder)
    return 0


@contextmanager
def _bar() -> Iterator[Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        yield bar


def _counter(bar: Bar, text: str) -> Callable[[int, int], None]:
    """Return a progress callback whose bar appears with the first call: what is cached shows none."""
    tasks: list[Any] = []

    def show(done: int, total: int) -> None:
        if not tasks:
            tasks.append(bar.add_task(text))
        bar.update(tasks[0], completed=done, total=total)

    return show


def _run(study: "Study", folders: Sequence[Path], out: Path, *, resume: bool, command: str, as_json: bool) -> int:
    """Run the comparison with live progress and print what it found."""
    from simulations.simulate import Progress, simulate

    with _bar() as bar:
        task = bar.add_task("starting Flower", total=None)

        shown = -1

        def show(progress: Progress) -> None:
            nonlocal shown
            bar.update(task, description=_describe(progress), completed=progress.done, total=progress.total)
            if not bar.console.is_terminal and progress.done != shown:  # a log gets a line a round
                bar.console.print(
                    f"{progress.done}/{progress.total} {_describe(progress)}", highlight=False, soft_wrap=True
                )
            shown = progress.done

        summary = simulate(study, folders, out, resume=resume, command=command, on_progress=show)
    if as_json:
        print(json.dumps(summary, indent=1))
    else:
        CONSOLE.print(_table(summary))
        CONSOLE.print(f"{summary['wall_s']:.0f} s. Look next at {out / 'report.html'} and {out / 'summary.json'}")
    return 0


def _describe(progress: Any) -> str:
    last = progress.last
    if last is None:
        return f"{progress.study}: first round"
    losses = [f"{site} {s.metrics['loss']:.3f}" for site, s in last.sites.items() if "loss" in s.metrics]
    return f"{progress.study}: {last.stage}, round {last.round + 1}; loss {', '.join(losses) or '-'}"


def _table(summary: dict[str, Any]) -> Table:
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
