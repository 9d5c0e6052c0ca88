"""`crossprobe study`: what a coordinator does between hospitals."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.errors import RunError
from common.options import (
    ADDRESS_VARIABLE,
    CA_VARIABLE,
    KEYS_VARIABLE,
    Address,
    Ca,
    Json,
    RunArgument,
    StudyFile,
    TensorBoard,
    commands,
    examples,
)

#: Option of the commands that need or change the coordinator's signing keys.
SigningKeys = Annotated[
    Path | None,
    typer.Option("--keys", metavar="DIR", help=f"the coordinator's signing keys; else {KEYS_VARIABLE}"),
]

if TYPE_CHECKING:
    from server.federation.flower_cli import FlowerCli

study = commands(
    help="Look at a study, run it between hospitals, follow it, stop it.",
    no_args_is_help=True,
    epilog=examples(
        "crossprobe study check configs/demo.yaml",
        "crossprobe study register north-clinic node.pub signing.pub --address localhost:8443 --ca ca.crt",
        "crossprobe study run study.yaml --out runs/first --address localhost:8443 --ca ca.crt",
        "crossprobe study status runs/first",
        "crossprobe study watch runs/first",
        "crossprobe study stop runs/first",
        "crossprobe study release runs/first --out model-of-first",
        note=f"{ADDRESS_VARIABLE} and {CA_VARIABLE} stand for --address and --ca where these are not given.",
    ),
)


@study.command(epilog=examples("crossprobe study check configs/demo.yaml"))
def check(study_file: StudyFile, as_json: Json = False) -> None:
    """Validate a study; print its hash and its stages."""
    from common.study import load_study

    checked = load_study(study_file)
    if as_json:
        print(json.dumps({"hash": checked.hash(), "study": json.loads(checked.resolved())}, indent=1))
        return
    table = Table(title=f"{checked.name}, hash {checked.hash()[:16]}")
    for column in ("stage", "rounds", "source sites", "target sites"):
        table.add_column(column)
    for stage in checked.stages:
        tasks = (stage.source, stage.target)
        cells = [" -> ".join(filter(None, (task.task, ", ".join(task.trains)))) if task else "-" for task in tasks]
        table.add_row(stage.name, str(stage.rounds), *cells)
    Console().print(table)


@study.command(
    epilog=examples(
        "crossprobe study baseline study.yaml --out baseline.yaml",
        "crossprobe study baseline study.yaml --run runs/baseline --out compared.yaml",
        note="The source hospitals approve and run the first, as any study; all approve and run the second.",
    )
)
def baseline(
    study_file: StudyFile,
    out: Annotated[Path, typer.Option(metavar="FILE", help="study file (YAML) to write")],
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="finished run of the baseline, to compare the study with")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a study's baseline as a study of its own, or with --run the study that is compared with it."""
    from server.federation.baseline import write_baseline, write_compared

    made = write_baseline(study_file, out) if run is None else write_compared(study_file, run, out)
    if as_json:
        print(json.dumps({"hash": made.hash(), "file": str(out)}))
        return
    who = "each source hospital approves it" if run is None else "each hospital approves it"
    print(f"{made.name}, hash {made.hash()[:16]}, is in {out}: {who}, then: crossprobe study run {out} --out RUN")


def _connection(address: str, ca: Path | None, known: tuple[str, str] = ("", "")) -> "FlowerCli":
    """Return the way to the SuperLink: as given, else as the run or the environment knows it."""
    from server.federation.flower_cli import FlowerCli

    address = address or known[0] or os.environ.get(ADDRESS_VARIABLE, "")
    certificate = str(ca or known[1] or os.environ.get(CA_VARIABLE, ""))
    if not address or not certificate:
        raise RunError(
            "which SuperLink? Give --address HOST:PORT and --ca FILE, or set "
            f"{ADDRESS_VARIABLE} and {CA_VARIABLE}, e.g. --address localhost:8443 --ca kits/coordinator/ca.crt"
        )
    if not Path(certificate).is_file():
        raise RunError(f"{certificate} is not there; expected the authority's certificate. Give --ca KIT/ca.crt.")
    return FlowerCli(address, Path(certificate))


def _connection_of_run(run: Path, address: str, ca: Path | None) -> "FlowerCli":
    from server.federation.deployment import run_of

    started = run_of(run)
    return _connection(address, ca, (started.address, started.ca))


@study.command(epilog=examples("crossprobe study register north-clinic node.pub signing.pub --keys signing"))
def register(
    name: Annotated[str, typer.Argument(metavar="NAME", help="the `name` in its site.yaml")],
    public_key: Annotated[Path, typer.Argument(metavar="NODE", help="the node.pub that the site sent")],
    signing_key: Annotated[Path, typer.Argument(metavar="SIGNING", help="the signing.pub that the site sent")],
    keys: SigningKeys = None,
    address: Address = "",
    ca: Ca = None,
) -> None:
    """Bind a site's name to its public keys.

    By the first its node may connect, by the second its replies count.
    """
    from common.fingerprint import fingerprint
    from server.federation.authority import key_fingerprint
    from server.signed import admit, keys_folder

    of_node, connection = key_fingerprint(public_key), _connection(address, ca)
    of_replies = fingerprint(admit(keys or keys_folder(), name, signing_key))
    node = connection.register(name, public_key)
    print(f"registered {name} as node {node}, key {of_node}, its replies signed by {of_replies}")
    print("Compare both fingerprints with the hospital, by another way than the one the keys came by.")


@study.command(epilog=examples("crossprobe study unregister north-clinic"))
def unregister(
    name: Annotated[str, typer.Argument(metavar="NAME", help="as it was registered")],
    keys: SigningKeys = None,
    address: Address = "",
    ca: Ca = None,
) -> None:
    """Bar the keys behind a site's name, such as stolen ones."""
    from server.signed import expel, keys_folder

    # First what needs nobody else: of a key that is barred already no second try would come this far.
    expel(keys or keys_folder(), name)
    print(f"no run that starts or goes on from now takes the signature of {name}")
    nodes = _connection(address, ca).unregister(name)
    print(f"unregistered {name}: node {', '.join(nodes)} may not connect any more")
    print("To let the hospital in again: a new key there with keygen, then `crossprobe study register`.")


@study.command(
    epilog=examples(
        "crossprobe study run study.yaml --out runs/first --address localhost:8443 --ca ca.crt",
        "crossprobe study run study.yaml --out runs/first --resume",
    )
)
def run(
    study_file: StudyFile,
    out: Annotated[Path, typer.Option(metavar="RUN", help="folder of the run, as the server sees it")],
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last round of RUN")] = False,
    tensorboard: TensorBoard = None,
    address: Address = "",
    ca: Ca = None,
) -> None:
    """Run it to its end; exit code 0 only if it completed."""
    from server.federation.deployment import NoLongerFollowing
    from server.federation.following import run_to_its_end
    from server.tensorboard import following

    console = Console()
    try:
        with following(out, tensorboard) as follow:
            cli = _connection(address, ca)
            run_to_its_end(cli, study_file, out, resume=resume, console=console, also=follow)
    except NoLongerFollowing:
        print(
            f"no longer following; the run goes on at the coordinator. See it with: crossprobe study status "
            f"{out}; end it with: crossprobe study stop {out}",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    console.print(f"completed. The model and the history are in {out}; next: crossprobe report {out}", markup=False)


@study.command(epilog=examples("crossprobe study status runs/first", "crossprobe study status runs/first --json"))
def status(run_folder: RunArgument, as_json: Json = False, address: Address = "", ca: Ca = None) -> None:
    """Tell which round it is, and which sites are lost."""
    from server.federation import deployment

    found = deployment.status(_connection_of_run(run_folder, address, ca), run_folder)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    console = Console()
    left = "" if found.left_s is None else f", about {max(1, round(found.left_s / 60))} min left"
    console.print(f"{found.flower}: {found.rounds_done} of {found.rounds or '?'} rounds, now in {found.stage}{left}")
    table = Table()
    for column in ("site", "state", "last round", "loss", "seconds", "detail"):
        table.add_column(column)
    for name, site in found.sites.items():
        last = "-" if site.last_round is None else str(site.last_round)
        loss = "-" if site.loss is None else f"{site.loss:.3g}"
        table.add_row(name, site.state, last, loss, f"{site.seconds:.1f}", escape(site.detail))
    console.print(table)
    if found.paused:
        print(found.paused.sentence())
    if found.error:
        print(found.error, file=sys.stderr)


@study.command(epilog=examples("crossprobe study watch runs/first", "crossprobe study watch runs/first --port 8765"))
def watch(
    run_folder: RunArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="on this machine's loopback; 0 takes a free one")] = 0,
) -> None:
    """Watch a run in the browser; after the run it is the report.

    Serves a page on loopback from RUN's files, for whoever has the address with its token. It reads only. From another
    machine, through a tunnel to the same port number: ssh -L PORT:127.0.0.1:PORT COORDINATOR.
    """
    from server.watch import watch as serve

    serve(run_folder, port, lambda url: print(f"open {url}\nCtrl-C ends this page; the run goes on.", flush=True))
    print("\nno longer watching; the run goes on")


@study.command(epilog=examples("crossprobe study stop runs/first"))
def stop(run_folder: RunArgument, address: Address = "", ca: Ca = None) -> None:
    """Stop a run; `run --resume` goes on from its last round."""
    from server.federation import deployment

    going = deployment.stop(_connection_of_run(run_folder, address, ca), run_folder)
    print("stopped; `crossprobe study run --resume` goes on from its last round" if going else "it had ended already")


@study.command(
    epilog=examples(
        "crossprobe study release runs/first",
        "crossprobe study release runs/first --out model-of-first",
        "crossprobe study release runs/first --audit runs/audit.json",
    )
)
def release(
    run_folder: RunArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="new folder for weights, study, card and hashes")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="put the figures of an audit of this very model into its card")
    ] = None,
    keys: SigningKeys = None,
) -> None:
    """Check a finished run's model, or copy it to be passed on.

    A run between hospitals signed it. One from before that is signed where the coordinator's keys are given.
    """
    from common.run_folder import RunFolder
    from common.signing import PRIVATE_KEY, read_private_key
    from server.release import export_release

    own = keys or (Path(os.environ[KEYS_VARIABLE]) if os.environ.get(KEYS_VARIABLE) else None)
    key = read_private_key(own / PRIVATE_KEY) if own else None
    folder = export_release(RunFolder(run_folder), out, key, audit)
    print(f"{folder}: whole, and without a number of any single site. Pass this folder on, never the run's.")


@study.command(epilog=examples("crossprobe study keygen signing"))
def keygen(folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder for the keys; keep it private")]) -> None:
    """Make the coordinator's signing key, once; kits have theirs from `provision`."""
    from common.fingerprint import fingerprint
    from common.signing import PRIVATE_KEY, PUBLIC_KEY, make_keys

    found = fingerprint(make_keys(folder))
    print(f"made {folder / PRIVATE_KEY}, which stays here, and {folder / PUBLIC_KEY}: each hospital puts it beside the")
    print("study that it approves.")
    print(f"Tell each its fingerprint by another way, such as the telephone:\n  {found}")
    print(f"Start the ServerApp with {KEYS_VARIABLE} naming this folder, and give it to `crossprobe study register`.")
