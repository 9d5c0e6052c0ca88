"""`crossprobe study` and `crossprobe provision`: what a coordinator does between hospitals."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from common.errors import RunError

if TYPE_CHECKING:
    from server.federation.flower_cli import FlowerCli
    from server.history import RoundRecord

RAW = argparse.RawDescriptionHelpFormatter
#: Where the SuperLink is, for a shell or a container that always talks to the same one.
ADDRESS_VARIABLE, CA_VARIABLE = "CROSSPROBE_ADDRESS", "CROSSPROBE_CA"


def study(arguments: list[str]) -> int:
    """Run one action of `crossprobe study` and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="crossprobe study",
        description="Look at a study, run it between hospitals, follow it, stop it.",
        formatter_class=RAW,
        epilog=(
            "examples:\n"
            "  crossprobe study check configs/demo.yaml\n"
            "  crossprobe study register north-clinic sites/north-clinic.pub --address localhost:8443 --ca ca.crt\n"
            "  crossprobe study unregister north-clinic --address localhost:8443 --ca ca.crt\n"
            "  crossprobe study run study.yaml --out runs/first --address localhost:8443 --ca ca.crt\n"
            "  crossprobe study status runs/first\n"
            "  crossprobe study stop runs/first\n"
            "  crossprobe study release runs/first --out model-of-first\n\n"
            f"{ADDRESS_VARIABLE} and {CA_VARIABLE} stand for --address and --ca where these are not given."
        ),
    )
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="validate a study; print its hash and its stages")
    run = actions.add_parser("run", help="run it to its end; exit code 0 only if it completed")
    for action in (check, run):
        action.add_argument("study", type=Path, help="study file (YAML)")
    run.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run, as the server sees it")
    run.add_argument("--resume", action="store_true", help="go on from the last round of RUN")
    register = actions.add_parser("register", help="bind a site's name to its public key")
    register.add_argument("name", help="the `name` in its site.yaml")
    register.add_argument("public_key", type=Path, metavar="PUBKEY", help="the node.pub that the site sent")
    unregister = actions.add_parser("unregister", help="bar the key behind a site's name, e.g. a stolen one")
    unregister.add_argument("name", help="as it was registered")
    status = actions.add_parser("status", help="how a run does: rounds, and which sites are connected, slow or lost")
    stop = actions.add_parser("stop", help="stop a run; `run --resume` goes on from its last round")
    release = actions.add_parser("release", help="check a finished run's model, or copy it to be passed on")
    release.add_argument("--key", type=Path, metavar="FILE", help="sign it with the coordinator's key")
    keygen = actions.add_parser("keygen", help="make the coordinator's signing key, once")
    keygen.add_argument("folder", type=Path, help="new folder for coordinator.key and coordinator.pub")
    release.add_argument("--out", type=Path, metavar="DIR", help="new folder for weights, study, card and hashes")
    for action in (status, stop, release):
        action.add_argument("run", type=Path, help="folder of the run")
    for action in (check, status):
        action.add_argument("--json", action="store_true", help="print the result for machines")
    for action in (run, register, unregister, status, stop):
        action.add_argument("--address", metavar="HOST:PORT", help="the SuperLink's, inside the coordinator's network")
        action.add_argument("--ca", type=Path, metavar="FILE", help="the kit's ca.crt")
    chosen = parser.parse_args(arguments)
    actions_by_name = {
        "check": _check,
        "run": _run,
        "register": _register,
        "unregister": _unregister,
        "status": _status,
        "stop": _stop,
        "release": _release,
        "keygen": _keygen,
    }
    return actions_by_name[chosen.action](chosen)


def provision(arguments: list[str]) -> int:
    """Write startup kits and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="crossprobe provision",
        description=(
            "Make a federation's certificate authority and the startup kits: one folder for the coordinator, one\n"
            "for each hospital. Hospitals make their own keys, see the README.md in each kit."
        ),
        formatter_class=RAW,
        epilog=(
            "examples:\n"
            "  crossprobe provision configs/demo.yaml --out kits\n"
            "  crossprobe provision study.yaml --out kits --address fl.example.org --port 443 \\\n"
            "      --site north-clinic:source --site east-clinic:target\n"
            "  crossprobe provision study.yaml --out kits --add --site west-clinic:target\n"
            "  crossprobe provision --out kits --renew"
        ),
    )
    parser.add_argument("study", type=Path, nargs="?", help="study file (YAML)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the kits; keep it out of version control")
    parser.add_argument("--address", metavar="HOST", help="by which hospitals reach the coordinator (proxy)")
    parser.add_argument("--port", type=int, help="port of it (9443)")
    parser.add_argument("--site", action="append", metavar="NAME:ROLE", help="a hospital; give one for each")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--add", action="store_true", help="only add the --site kits to those in OUT")
    existing.add_argument("--renew", action="store_true", help="only renew the server's certificate; needs OUT/ca")
    existing.add_argument("--overwrite", action="store_true", help="replace an existing authority")
    chosen = parser.parse_args(arguments)

    from common.study import load_study
    from server.federation.provision import add_sites, parse_site, provision, renew_server, valid_host

    if chosen.renew:
        if (chosen.study, chosen.site, chosen.address, chosen.port) != (None, None, None, None):
            parser.error("--renew takes --out only: names and authority stay as they are")
        print(
            f"the server's new certificate ends on {renew_server(chosen.out):%Y-%m-%d}; no hospital needs a new file."
        )
        print("Bring server.key and server.crt to the server, then there: docker compose restart superlink proxy")
        return 0
    if chosen.study is None:
        parser.error("which study? Give its file")
    if chosen.add:
        if not chosen.site or (chosen.address, chosen.port) != (None, None):
            parser.error("--add needs --site; it takes address and port from the coordinator's kit in OUT")
        sites = [parse_site(text) for text in chosen.site]
        for kit in add_sites(load_study(chosen.study), chosen.study, chosen.out, sites):
            print(f"{kit}: begin with {kit / 'README.md'}")
            print(f"then register its key: crossprobe study register {kit.name} {kit.name}.pub")
        return 0
    try:
        host = valid_host("proxy" if chosen.address is None else chosen.address)
    except ValueError as error:
        parser.error(f"--address: {error}")
    port = 9443 if chosen.port is None else chosen.port
    if not 0 < port < 65536:
        parser.error(f"--port: expected 1 to 65535, found {port}")
    sites = [parse_site(text) for text in chosen.site or ("source:source", "target:target")]
    study = load_study(chosen.study)
    kits = provision(study, chosen.study, chosen.out, sites, host=host, port=port, overwrite=chosen.overwrite)
    print("\n".join(f"{kit}: begin with {kit / 'README.md'}" for kit in kits))
    print(f"{chosen.out / 'ca'}: the authority's key; take it off this machine and keep it safe")
    return 0


def _check(chosen: argparse.Namespace) -> int:
    from common.study import load_study

    study = load_study(chosen.study)
    if chosen.json:
        print(json.dumps({"hash": study.hash(), "study": json.loads(study.resolved())}, indent=1))
        return 0
    table = Table(title=f"{study.name}, hash {study.hash()[:16]}")
    for column in ("stage", "rounds", "source sites", "target sites"):
        table.add_column(column)
    for stage in study.stages:
        cells = [f"{task.task} -> {', '.join(task.trains)}" if task else "-" for task in (stage.source, stage.target)]
        table.add_row(stage.name, str(stage.rounds), *cells)
    Console().print(table)
    return 0


def _connection(chosen: argparse.Namespace, known: tuple[str, str] = ("", "")) -> "FlowerCli":
    """Return the way to the SuperLink: as given, else as the run or the environment knows it."""
    from server.federation.flower_cli import FlowerCli

    address = chosen.address or known[0] or os.environ.get(ADDRESS_VARIABLE, "")
    ca = chosen.ca or known[1] or os.environ.get(CA_VARIABLE, "")
    if not address or not ca:
        raise RunError(
            "which SuperLink? Give --address HOST:PORT and --ca FILE, or set "
            f"{ADDRESS_VARIABLE} and {CA_VARIABLE}, e.g. --address localhost:8443 --ca kits/coordinator/ca.crt"
        )
    if not Path(ca).is_file():
        raise RunError(f"{ca} is not there; expected the authority's certificate. Give --ca KIT/ca.crt.")
    return FlowerCli(address, Path(ca))


def _connection_of_run(chosen: argparse.Namespace) -> "FlowerCli":
    from server.federation.deployment import run_of

    run = run_of(chosen.run)
    return _connection(chosen, (run.address, run.ca))


def _register(chosen: argparse.Namespace) -> int:
    from server.federation.authority import key_fingerprint

    found = key_fingerprint(chosen.public_key)
    node = _connection(chosen).register(chosen.name, chosen.public_key)
    print(f"registered {chosen.name} as node {node}, key {found}")
    print("Compare this fingerprint with the hospital, by another way than the one the key came by.")
    return 0


def _unregister(chosen: argparse.Namespace) -> int:
    nodes = _connection(chosen).unregister(chosen.name)
    print(f"unregistered {chosen.name}: node {', '.join(nodes)} may not connect any more")
    print("To let the hospital in again: a new key there with keygen, then `crossprobe study register`.")
    return 0


def _run(chosen: argparse.Namespace) -> int:
    from common.study import load_study
    from server import history
    from server.federation import deployment

    cli = _connection(chosen)
    total = len(list(load_study(chosen.study).rounds()))
    before = sum(record.counted for record in history.read(chosen.out)) if chosen.resume else 0
    run_id = deployment.start(cli, chosen.study, chosen.out, resume=chosen.resume)
    console = Console()
    console.print(f"run {run_id} started; it writes {chosen.out}", soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} rounds"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("enrolment", total=total, completed=before)

        def on_round(record: "RoundRecord") -> None:
            console.print(_line(record), soft_wrap=True)
            bar.update(task, description=record.stage, completed=record.round + record.counted)

        try:
            deployment.follow(cli, run_id, chosen.out, on_round)
        except KeyboardInterrupt:
            bar.stop()
            print(
                f"no longer following; the run goes on at the coordinator. See it with: crossprobe study status "
                f"{chosen.out}; end it with: crossprobe study stop {chosen.out}",
                file=sys.stderr,
            )
            return 130
    console.print(f"completed. The model and the history are in {chosen.out}; next: crossprobe report {chosen.out}")
    return 0


def _line(record: "RoundRecord") -> str:
    """One round in one line: what took how long, and every site that did not do its part."""
    well = sum(site.status == "ok" for site in record.sites.values())
    parts = [f"round {record.round} {record.stage}: {well} of {len(record.sites)} sites, {record.seconds:.1f} s"]
    parts += [
        f"{name} {site.status}: {site.detail or 'no reason given'}"
        for name, site in record.sites.items()
        if site.status != "ok"
    ]
    if not record.counted:
        parts.append("below quorum, asked again once its sites are back")
    return escape("; ".join(parts))


def _status(chosen: argparse.Namespace) -> int:
    from server.federation import deployment

    status = deployment.status(_connection_of_run(chosen), chosen.run)
    if chosen.json:
        print(json.dumps(asdict(status), indent=1))
        return 0
    console = Console()
    console.print(f"{status.flower}: {status.rounds_done} of {status.rounds or '?'} rounds, now in {status.stage}")
    table = Table()
    for column in ("site", "state", "last round", "seconds", "detail"):
        table.add_column(column)
    for name, site in status.sites.items():
        last = "-" if site.last_round is None else str(site.last_round)
        table.add_row(name, site.state, last, f"{site.seconds:.1f}", escape(site.detail))
    console.print(table)
    if status.paused:
        print(status.paused.sentence())
    if status.error:
        print(status.error, file=sys.stderr)
    return 0


def _stop(chosen: argparse.Namespace) -> int:
    from server.federation import deployment

    going = deployment.stop(_connection_of_run(chosen), chosen.run)
    print("stopped; `crossprobe study run --resume` goes on from its last round" if going else "it had ended already")
    return 0


def _release(chosen: argparse.Namespace) -> int:
    from common.run_folder import RunFolder
    from common.signing import read_private_key
    from server.release import export_release

    key = read_private_key(chosen.key) if chosen.key else None
    folder = export_release(RunFolder(chosen.run), chosen.out, key)
    print(f"{folder}: whole, and without a number of any single site. Pass this folder on, never the run's.")
    return 0


def _keygen(chosen: argparse.Namespace) -> int:
    from common.fingerprint import fingerprint
    from common.signing import PRIVATE_KEY, PUBLIC_KEY, make_keys

    found = fingerprint(make_keys(chosen.folder))
    print(f"made {chosen.folder / PRIVATE_KEY}, which stays here, and {chosen.folder / PUBLIC_KEY} for the hospitals.")
    print(f"Tell each its fingerprint by another way, such as the telephone:\n  {found}")
    print(f"Put each hospital's `crossprobe site signing-key` into {chosen.folder / 'sites'}/NAME.pub, and start the")
    print("ServerApp with CROSSPROBE_SIGNING_KEYS naming this folder.")
    return 0
