"""`crossprobe worker` and `crossprobe ledger`: the hospital's long-running process, and the record of all it said."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    from clients.governance.state import State

RAW = argparse.RawDescriptionHelpFormatter


def worker(arguments: list[str]) -> int:
    """Run the worker, or ask whether one answers; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="crossprobe worker",
        description=(
            "Answer the messages of approved studies at a Unix socket, until SIGTERM. The only process that opens\n"
            "images; it needs no network. Approvals are read again for each message."
        ),
        formatter_class=RAW,
        epilog=(
            "examples:\n"
            "  crossprobe worker --site /data/our-site --state /srv/crossprobe --socket /run/crossprobe/worker.sock\n"
            "  crossprobe worker --check --socket /run/crossprobe/worker.sock"
        ),
    )
    parser.add_argument("--socket", type=Path, required=True, help="path of the Unix socket, at most 107 characters")
    parser.add_argument("--site", type=Path, help="folder with site.yaml and manifest.csv; may be read-only")
    parser.add_argument("--state", type=Path, help="the site's state folder; not the data's")
    parser.add_argument("--group", help="group that may connect, beside this user")
    parser.add_argument(
        "--witness", metavar="FILE", help="append the ledger's heads to FILE; `syslog`: to the system log"
    )
    parser.add_argument(
        "--check", action="store_true", help="only say whether a worker answers there: exit code 0 or 1"
    )
    chosen = parser.parse_args(arguments)

    if chosen.check:
        from clients.node.channel import answers

        alive = answers(chosen.socket)
        text = (
            f"a worker answers at {chosen.socket}" if alive else f"nobody answers at {chosen.socket}. Start the worker."
        )
        print(text, file=sys.stdout if alive else sys.stderr)
        return 0 if alive else 1
    if chosen.site is None or chosen.state is None:
        parser.error("give --site and --state, or --check")

    from clients.data.site import load_site
    from clients.governance.state import State
    from clients.node.channel import address
    from clients.node.service import run

    address(chosen.socket)  # before minutes are spent on reading the images
    state = State(chosen.state)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking the site's folder", total=None)
        site = load_site(chosen.site, lambda done, total: bar.update(task, completed=done, total=total))
    run(site, state, chosen.socket, group=chosen.group, witness=chosen.witness)
    return 0


def ledger(arguments: list[str]) -> int:
    """Verify or show a ledger and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="crossprobe ledger",
        description="The record of every message that a site received and sent.",
        formatter_class=RAW,
        epilog=(
            "examples:\n"
            "  crossprobe ledger show --state /srv/crossprobe\n"
            "  crossprobe ledger verify --state /srv/crossprobe --head 3f1c...\n\n"
            "A head is the hash of a line of the ledger. The coordinator has one from each reply, as `ledger_head` in\n"
            "its run's history.jsonl; ask for the latest."
        ),
    )
    actions = parser.add_subparsers(dest="action", required=True)
    verify = actions.add_parser("verify", help="find changed, removed or moved lines; exit code 0 or 1")
    verify.add_argument("--head", type=_head, help="64 characters from the coordinator; finds a cut or rewritten file")
    show = actions.add_parser("show", help="tell what left, and when")
    show.add_argument("--study", default="", metavar="HASH", help="only this study (the hash, or how it begins)")
    renew = actions.add_parser("renew", help="put a ledger aside that cannot be mended, and begin a new one")
    for action in (verify, show, renew):
        action.add_argument("--state", type=Path, required=True, help="the site's state folder")
        action.add_argument("--json", action="store_true", help="print the result for machines")
    chosen = parser.parse_args(arguments)

    from clients.governance.state import State

    if chosen.action == "renew":
        return _renew(State(chosen.state), chosen.json)
    path = State(chosen.state).ledger
    return _verify(path, chosen.head, chosen.json) if chosen.action == "verify" else _show(path, chosen)


def _renew(state: "State", as_json: bool) -> int:
    from clients.governance.renewal import renew

    aside = renew(state)
    if as_json:
        print(json.dumps({"aside": aside and str(aside)}))
        return 0
    print(f"a new ledger begins in {state.ledger}; the old one is {aside or 'gone'}. Keep it, and tell your")
    print("privacy officer and the coordinator: heads from before are not in the new one.")
    return 0


def _head(text: str) -> str:
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise argparse.ArgumentTypeError("a head has 64 characters, 0-9 and a-f")
    return text


def _verify(path: Path, head: str | None, as_json: bool) -> int:
    from clients.governance.ledger import verify

    verdict = verify(path, head)
    if as_json:
        print(json.dumps({"ok": not verdict.damage, **asdict(verdict)}, indent=1))
        return 1 if verdict.damage else 0
    for damage in verdict.damage:
        print(f"{path} line {damage.line}: {damage.message}", file=sys.stderr)
    if verdict.damage:
        print("the ledger is not as the worker wrote it: tell your privacy officer", file=sys.stderr)
        return 1
    print(f"{verdict.lines} lines, no line changed, removed or moved. The head is {verdict.head}")
    if head is None:
        print(
            "Whether its end was cut off or the whole file was written anew cannot be told without a head: ask the "
            "coordinator for one, then give it with --head."
        )
    else:
        after = verdict.lines - verdict.proven
        print(f"Lines 1 to {verdict.proven} are those that the coordinator's head stands for; {after} came later.")
    return 0


def _show(path: Path, chosen: argparse.Namespace) -> int:
    from clients.governance.ledger import read, verify
    from common.components import component_of

    entries = [content for content in read(path) if (content["study"] or "").startswith(chosen.study)]
    if chosen.json:
        print(json.dumps(entries, indent=1))
        return 0
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
            "\n".join([content["refusal"] or content["task"] or content["kind"], *components, *numbers]),
        )
    Console().print(table)
    sent = [content for content in entries if content["direction"] == "out"]
    print(f"sent: {len(sent)} messages, {sum(content['bytes'] for content in sent):,} bytes")
    if verify(path).damage:
        print("this ledger is damaged: run `crossprobe ledger verify`", file=sys.stderr)
        return 1
    return 0
