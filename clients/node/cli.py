"""`crossprobe worker` and `crossprobe ledger`: the hospital's long-running process, and the record of all it said."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from common.files import append_to
from common.options import Json, StateFolder, commands, examples

app = commands()
ledger = commands(
    help="""Show and verify what this site sent, and when.

    The ledger is the record of every message that a site received and sent. A head is the hash of a line of it. The
    coordinator has one from each reply, as `ledger_head` in its run's history.jsonl; ask for the latest.
    """,
    no_args_is_help=True,
    epilog=examples(
        "crossprobe ledger show --state /srv/crossprobe",
        "crossprobe ledger verify --state /srv/crossprobe --head HEAD-FROM-THE-COORDINATOR",
    ),
)
app.add_typer(ledger, name="ledger")


@app.command(
    epilog=examples(
        "crossprobe worker --site /data/our-site --state /srv/crossprobe --socket /run/crossprobe/worker.sock",
        "crossprobe worker --check --socket /run/crossprobe/worker.sock",
    ),
)
def worker(
    socket: Annotated[Path, typer.Option(help="path of the Unix socket, at most 107 characters")],
    site: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder with site.yaml and manifest.csv; may be read-only")
    ] = None,
    state: Annotated[Path | None, typer.Option(metavar="DIR", help="the site's state folder; not the data's")] = None,
    group: Annotated[str | None, typer.Option(help="group that may connect, beside this user")] = None,
    witness: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="append the ledger's heads to FILE; `syslog`: to the system log"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="only say whether a worker answers there: exit code 0 or 1")
    ] = False,
) -> None:
    """Answer the messages of approved studies.

    At a Unix socket, until SIGTERM. The only process that opens images; it needs no network. Approvals are read again
    for each message.
    """
    if check:
        from clients.node.channel import answers

        alive = answers(socket)
        text = f"a worker answers at {socket}" if alive else f"nobody answers at {socket}. Start the worker."
        print(text, file=sys.stdout if alive else sys.stderr)
        raise typer.Exit(0 if alive else 1)
    if site is None or state is None:
        raise click.UsageError("give --site and --state, or --check")
    from clients.node.jail import GIVEN_UP, enter
    from clients.node.surroundings import networks, surroundings

    reachable, heads = networks(), [] if witness in (None, "syslog") else [Path(str(witness))]
    for file in heads:  # to be there before it is the only one that may be written; what is wrong, `run` says
        with contextlib.suppress(OSError):
            os.close(append_to(file))
    # before numpy and torch have threads
    kept = enter(reads=[site], writes=[state, *heads], listens=[socket.parent])
    notes = [*(kept or [GIVEN_UP]), *surroundings(site, reachable if kept else [])]

    from clients.data.site import load_site
    from clients.governance.state import State
    from clients.node.channel import address
    from clients.node.device import check_device
    from clients.node.service import run

    address(socket)  # before minutes are spent on reading the images
    folder = State(state)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking the site's folder", total=None)
        checked = load_site(site, lambda done, total: bar.update(task, completed=done, total=total))
    check_device(checked.config.device)
    run(checked, folder, socket, group=group, witness=witness, notes=notes)


@ledger.command(epilog=examples("crossprobe ledger renew --state /srv/crossprobe"))
def renew(state: StateFolder, as_json: Json = False) -> None:
    """Put a ledger aside that cannot be mended, and begin a new one."""
    from clients.governance.renewal import renew
    from clients.governance.state import State

    folder = State(state)
    aside = renew(folder)
    if as_json:
        print(json.dumps({"aside": aside and str(aside)}))
        return
    print(f"a new ledger begins in {folder.ledger}; the old one is {aside or 'gone'}. Keep it, and tell your")
    print("privacy officer and the coordinator: heads from before are not in the new one.")


def _head(text: str | None) -> str | None:
    if text is not None and (len(text) != 64 or not set(text) <= set("0123456789abcdef")):
        raise typer.BadParameter("a head has 64 characters, 0-9 and a-f")
    return text


@ledger.command(
    epilog=examples(
        "crossprobe ledger verify --state /srv/crossprobe",
        "crossprobe ledger verify --state /srv/crossprobe --head HEAD-FROM-THE-COORDINATOR",
    )
)
def verify(
    state: StateFolder,
    head: Annotated[
        str | None,
        typer.Option(callback=_head, help="64 characters from the coordinator; finds a cut or rewritten file"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find changed, removed or moved lines; exit code 0 or 1."""
    from clients.governance.ledger import verify
    from clients.governance.state import State

    path = State(state).ledger
    verdict = verify(path, head)
    if as_json:
        print(json.dumps({"ok": not verdict.damage, **asdict(verdict)}, indent=1))
        raise typer.Exit(1 if verdict.damage else 0)
    for damage in verdict.damage:
        print(f"{path} line {damage.line}: {damage.message}", file=sys.stderr)
    if verdict.damage:
        print("the ledger is not as the worker wrote it: tell your privacy officer", file=sys.stderr)
        raise typer.Exit(1)
    print(f"{verdict.lines} lines, no line changed, removed or moved. The head is {verdict.head}")
    if head is None:
        print(
            "Whether its end was cut off or the whole file was written anew cannot be told without a head: ask the "
            "coordinator for one, then give it with --head."
        )
    else:
        after = verdict.lines - verdict.proven
        print(f"Lines 1 to {verdict.proven} are those that the coordinator's head stands for; {after} came later.")


@ledger.command(epilog=examples("crossprobe ledger decisions --state /srv/crossprobe"))
def decisions(state: StateFolder, as_json: Json = False) -> None:
    """Tell who approved and withdrew which study, and when."""
    from clients.governance.decisions import decisions
    from clients.governance.state import State

    found = decisions(State(state).decisions)
    if as_json:
        print(json.dumps([asdict(decision) for decision in found], indent=1))
        return
    for decision in found:
        print(f"{decision.when}  {decision.by} {decision.what} study {decision.study} {decision.study_hash[:16]}")
    if not found:
        print("nothing was decided here")


@ledger.command(
    epilog=examples(
        "crossprobe ledger show --state /srv/crossprobe",
        "crossprobe ledger show --state /srv/crossprobe --study 3f1c --json",
    )
)
def show(
    state: StateFolder,
    study: Annotated[str, typer.Option(metavar="HASH", help="only this study (the hash, or how it begins)")] = "",
    as_json: Json = False,
) -> None:
    """Tell what left, and when."""
    from clients.governance.ledger import read, verify
    from clients.governance.state import State

    path = State(state).ledger
    entries = [content for content in read(path) if (content["study"] or "").startswith(study)]
    damaged = verify(path).damage
    if as_json:
        print(json.dumps(entries, indent=1))
    else:
        _show(entries)
    if damaged:
        print("this ledger is damaged: run `crossprobe ledger verify`", file=sys.stderr)
        raise typer.Exit(1)


def _show(entries: Sequence[Mapping[str, Any]]) -> None:
    """Print messages as a table, and how much of them left."""
    from common.components import component_of

    table = Table(title=f"{len(entries)} messages, times in UTC", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("time", "way", "study", "round", "bytes"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("round", "bytes") else "left")
    table.add_column("what", overflow="fold")
    for content in entries:
        components = dict.fromkeys(component_of(name) for name in content["tensors"])
        numbers = [f"{name} {value:.4g}" for name, value in content["metrics"].items()]
        if content["epsilon"] is not None:
            numbers = [f"epsilon {content['epsilon']:.4g} after it", *numbers]
        if content.get("unwritten"):
            numbers = [f"before it {content['unwritten']} messages refused as too-many-messages", *numbers]
        if len(numbers) > 8:
            numbers = [*numbers[:8], f"and {len(numbers) - 8} more, see --json"]
        table.add_row(
            content["time"][:19].replace("T", " "),
            {"in": "in", "out": "OUT"}[content["direction"]],
            (content["study"] or "-")[:8],
            "-" if content["round"] is None else str(content["round"]),
            f"{content['bytes']:,}",
            escape("\n".join([content["refusal"] or content["task"] or content["kind"], *components, *numbers])),
        )
    Console().print(table)
    sent = [content for content in entries if content["direction"] == "out"]
    print(f"sent: {len(sent)} messages, {sum(content['bytes'] for content in sent):,} bytes")
