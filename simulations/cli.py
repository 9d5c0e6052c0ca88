"""The researcher's commands that run something: demo, simulate, ablate, audit and rehearse."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich.console import Console
from rich.table import Table

from common.options import MAX_SEED, Json, Overwrite, Seed, StudyFile, TensorBoard, commands, examples, several, typed
from simulations.show import counter, progress_bar, simulate_and_show

if TYPE_CHECKING:
    from common.study import Study


StudySeed = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=MAX_SEED, help="instead of the study's; the demo's phantom follows it"),
]
#: Folder of the checkout, from whatever folder a command is called.
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=256,
        show_default="the cores, shared among the sites that train",
        help="CPU threads of each site; another number gives other bits, 1 those of a hospital that set none",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="go on with a run that was stopped")]

app = commands()


@app.command(
    epilog=examples("crossprobe demo", "crossprobe demo --seed 1 --out runs/second", "crossprobe demo --resume")
)
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(metavar="RUN", help="run folder")] = Path("runs/demo"),
    study_file: Annotated[
        Path, typer.Option("--study", metavar="STUDY", help="study file (YAML)", show_default="configs/demo.yaml")
    ] = CONFIGS / "demo.yaml",
    seed: StudySeed = None,
    threads: Threads = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Run the whole method on two phantom sites, with a report.

    Writes one labelled and one unlabelled phantom site, trains the baseline and the whole method on Flower, evaluates
    both and writes OUT/summary.json and OUT/report.html.
    """
    from simulations.phantom.demo import write_sites
    from simulations.simulate import begun

    study = _seeded_study(study_file, seed)
    # Before the sites are drawn anew: those of another run stay. Stopped while they were drawn, no run was begun yet.
    resume = begun(study, out, resume=resume)
    with progress_bar() as bar:
        folders = write_sites(
            out / "sites",
            source=["lumify_like"],
            target=["telemed_like"],
            seed=study.seed,
            workers=os.cpu_count() or 1,
            overwrite=True,
            on_site=lambda name: counter(bar, f"phantom {name}"),
        )
    simulate_and_show(study, folders, out, threads=threads, resume=resume, command=typed(context), as_json=as_json)


@app.command(
    cls=several("--sites"),
    epilog=examples(
        "crossprobe simulate configs/demo.yaml --sites runs/demo/sites/* --out runs/again",
        "crossprobe simulate configs/pretrained.yaml --sites busbra/ge-logiq7 busbra/toshiba-aplio300",
    ),
)
def simulate(
    context: typer.Context,
    study_file: StudyFile,
    sites: Annotated[list[Path], typer.Option(metavar="DIR ...", help="site folders, any number of each role")],
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="run folder (default: runs/NAME of the study)")
    ] = None,
    seed: StudySeed = None,
    threads: Threads = None,
    resume: Resume = False,
    tensorboard: TensorBoard = None,
    as_json: Json = False,
) -> None:
    """Run a study over site folders on this machine.

    The study and its baseline run on Flower's simulation engine.
    """
    study = _seeded_study(study_file, seed)
    out = out or Path("runs") / study.name
    simulate_and_show(
        study,
        sites,
        out,
        threads=threads,
        resume=resume,
        command=typed(context),
        as_json=as_json,
        tensorboard=tensorboard,
    )


def _seeded_study(file: Path, seed: int | None) -> "Study":
    from common.study import load_study

    study = load_study(file)
    return study if seed is None else study.model_copy(update={"seed": seed})


@app.command(
    epilog=examples(
        "crossprobe ablate configs/ablation-phantom.yaml",
        "crossprobe ablate configs/ablation-few-labels.yaml --jobs 1 --publish docs/results",
    )
)
def ablate(
    context: typer.Context,
    ablation_file: Annotated[Path, typer.Argument(metavar="ABLATION", help="ablation file (YAML)")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="folder of the ablation (default: runs/NAME)")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="processes")] = os.cpu_count() or 1,
    publish_to: Annotated[
        Path | None, typer.Option("--publish", metavar="DIR", help="put tables and charts into DIR and write DIR.md")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure which part of the method wins how much.

    Trains and measures the method's variants on every data set with every seed. Stages that variants share are trained
    once. Start it again to go on where it was stopped; OUT/ablation.log tells where it is. The networks compute on a
    GPU where torch sees one; put CUDA_VISIBLE_DEVICES= in front to hide it.
    """
    from simulations.ablation.cells import load_ablation, run_ablation
    from simulations.ablation.page import print_summary, publish
    from simulations.ablation.results import write_page

    ablation = load_ablation(ablation_file)
    with progress_bar() as bar:
        show = counter(bar, f"variants of {ablation.name}")
        summary = run_ablation(ablation, out or Path("runs") / ablation.name, jobs, show)
    summary["command"] = typed(context)
    if publish_to:
        publish(summary, publish_to)
        print(write_page(publish_to), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(summary, indent=1))
    else:
        print_summary(summary, Console())


@app.command(
    cls=several("--sites"),
    epilog=examples(
        "crossprobe audit --sites runs/demo/sites/* --model runs/demo",
        "crossprobe audit --sites runs/busbra/toshiba-aplio300 --out docs/audit/busbra.json --publish docs/privacy.md",
    ),
)
def audit(
    context: typer.Context,
    sites: Annotated[list[Path], typer.Option(metavar="DIR ...", help="site folders to attack, of either role")],
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="a release or finished run that these sites trained")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="what was found, JSON")] = Path("runs/audit.json"),
    rounds: Annotated[int, typer.Option(min=0, max=100, help="replies that each attack reads; 0: no images")] = 4,
    shadow_pairs: Annotated[
        int,
        typer.Option(min=0, max=100, help="with --model: pairs of models to train again, to tell membership by"),
    ] = 0,
    seed: Seed = 0,
    publish_to: Annotated[
        Path | None,
        typer.Option("--publish", metavar="FILE", help="put the tables of all audits beside OUT into this document"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Attack site folders as a hostile coordinator would, and tell what leaked.

    Images are rebuilt from replies of the real worker, under each site's own policy and, where that refuses, without
    its limits; of a model, membership is told; and numbers of single patients from the difference of two studies. Only
    numbers are written, never an image. A few minutes a site. Exit code 1 if something was found that fails an audit:
    an image rebuilt under a site's own policy, membership told better than by a guess, a single patient's number.
    A shadow model takes a whole training of the model's study, by all its sites.
    """
    if shadow_pairs and model is None:
        raise click.UsageError("--shadow-pairs tells membership in a model: give --model, too.")
    from common.audit_record import AuditRecord
    from simulations.audit.audit import audit_sites
    from simulations.audit.page import PART, publish, tables
    from simulations.publication import around, make_folder, write_figures

    make_folder(out.parent)  # its errors here, not after all attacks; those of the document too
    if publish_to is not None:
        around(publish_to, PART)
    with progress_bar() as bar:
        found = audit_sites(
            sites,
            model,
            command=typed(context),
            rounds=rounds,
            seed=seed,
            shadow_pairs=shadow_pairs,
            on_progress=counter(bar, "attacks"),
        )
    text = json.dumps(found, indent=1)
    write_figures(out, found)
    if publish_to is not None:
        publish(publish_to, out.parent)
    if as_json:
        print(text)
    else:
        print(tables([found]))  # as it is published: drawn on a terminal, so wide a table would be cut
    failures = list(AuditRecord.model_validate_json(text).failures())
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)


@app.command(epilog=examples("crossprobe rehearse", "crossprobe rehearse --overwrite"))
def rehearse(
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for sites, kits, logs and run")] = Path(
        "runs/rehearsal"
    ),
    study_file: Annotated[
        Path, typer.Option("--study", metavar="STUDY", help="study file (YAML)", show_default="configs/rehearsal.yaml")
    ] = CONFIGS / "rehearsal.yaml",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Run a whole federation on this machine, once.

    Two phantom hospitals and a coordinator, with certificates, kits, keys, approvals and every process that they have
    in earnest: what docs/coordinator.md does step by step. It takes about two minutes, and ends all that it started,
    also on Ctrl-C. It separates nothing, since all runs as one user: keep it to phantoms.
    """
    from server.federation.following import run_to_its_end
    from simulations.rehearsal import rehearse as rehearse_federation

    console = Console(stderr=as_json)
    try:
        done = rehearse_federation(
            out,
            study_file,
            overwrite=overwrite,
            tell=lambda step: console.print(f"- {step}", soft_wrap=True, markup=False),
            follow=lambda cli, study, run: run_to_its_end(cli, study, run, resume=False, console=console),
        )
    except KeyboardInterrupt:
        typer.echo("\nstopped, and every process of the rehearsal with it; --overwrite begins anew", err=True)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(asdict(done), indent=1, default=str))
        return
    table = Table(title="what left each hospital")
    for column in ("site", "messages", "bytes"):
        table.add_column(column, justify="left" if column == "site" else "right")
    for name, site in done.sites.items():
        table.add_row(name, str(site.messages_sent), f"{site.bytes_sent:,}")
    console.print(table)
    console.print(f"completed in {done.seconds:.0f} s. Look next at {done.report}", soft_wrap=True, markup=False)
