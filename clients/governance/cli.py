"""`crossprobe site`: what a hospital does with its own folder, its state and the studies it is asked to join."""

import argparse
import getpass
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from clients.data.intake import cli as intake
from common.components import ROLES
from common.errors import CrossProbeError, SiteStateError
from common.files import write_atomically

if TYPE_CHECKING:
    from clients.data.findings import Finding

RAW = argparse.RawDescriptionHelpFormatter


def main(arguments: list[str]) -> int:
    """Run one action and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="crossprobe site",
        description="Look after a hospital's site: its folder, its state, and the studies that it takes part in.",
        formatter_class=RAW,
        epilog=(
            "examples, in the order of a first study:\n"
            "  crossprobe site new /archive/wrist /data/our-site --role target\n"
            "  crossprobe site check /data/our-site\n"
            "  crossprobe site init --state /srv/crossprobe\n"
            "  crossprobe site keygen --state /srv/crossprobe-node\n"
            "  crossprobe site leaves study.yaml --role source\n"
            "  crossprobe site dry-run study.yaml --site /data/our-site --state /srv/crossprobe --out dry-run\n"
            "  crossprobe site approve study.yaml --site /data/our-site --state /srv/crossprobe\n"
            "  crossprobe site withdraw study.yaml --state /srv/crossprobe"
        ),
    )
    actions = parser.add_subparsers(dest="action", required=True)

    check = actions.add_parser("check", help="report everything that is wrong with a site folder")
    check.add_argument("folder", type=Path, help="folder with site.yaml and manifest.csv")
    check.add_argument("--all", type=Path, metavar="FILE", help="write all findings to FILE; three of a kind are shown")
    check.add_argument(
        "--study", type=Path, help="also tell for which of this study's tasks and numbers it is too small"
    )

    new = actions.add_parser("new", help="make a site folder from images, loops and DICOM as a hospital has them")
    intake.add_arguments(new)

    init = actions.add_parser("init", help="make the state folder and its secret, once")

    keygen = actions.add_parser("keygen", help="make the node's keys, once; the coordinator gets node.pub")

    signing_key = actions.add_parser("signing-key", help="print the key by which the coordinator knows your replies")

    leaves = actions.add_parser("leaves", help="tell in Markdown all that can leave a site, or does in one study")
    leaves.add_argument("study", type=Path, nargs="?", help="study file (YAML); without it, whatever the study")
    leaves.add_argument("--role", choices=ROLES, help="of a study: only what leaves sites of this role")

    approve = actions.add_parser("approve", help="show what a study would do and send here, and allow it")
    approve.add_argument("--yes", action="store_true", help="approve without being asked")
    approve.add_argument("--by", default=None, help="who approves (default: the user who runs this)")
    approve.add_argument("--coordinator-key", type=Path, metavar="FILE", help="take requests signed by this key only")
    approve.add_argument("--restart", action="store_true", help="let the study begin again at its first round")

    withdraw = actions.add_parser("withdraw", help="take an approval back")

    dry_run = actions.add_parser("dry-run", help="write exactly what a study would send, without sending it")
    dry_run.add_argument("--out", type=Path, required=True, help="new folder for the messages and their table")

    withdraw.add_argument("study", help="study file (YAML), or a study's hash")
    for action in (approve, dry_run):
        action.add_argument("study", type=Path, help="study file (YAML)")
        action.add_argument("--site", type=Path, required=True, help="folder with site.yaml and manifest.csv")
    keygen.add_argument("--state", type=Path, required=True, help="the node's own folder; the worker never sees it")
    for action in (init, signing_key, approve, withdraw, dry_run):
        action.add_argument("--state", type=Path, required=True, help="the site's state folder; not the data's")
    for action in (check, new, init, keygen, signing_key, leaves, approve, withdraw, dry_run):
        action.add_argument("--json", action="store_true", help="print the result for machines")
    chosen = parser.parse_args(arguments)
    actions_by_name = {
        "check": _check,
        "new": intake.run,
        "init": _init,
        "keygen": _keygen,
        "signing-key": _signing_key,
        "leaves": _leaves,
        "approve": _approve,
        "withdraw": _withdraw,
        "dry-run": _dry_run,
    }
    return actions_by_name[chosen.action](chosen)


def _check(chosen: argparse.Namespace) -> int:
    from clients.data.manifest import SPLITS
    from clients.data.site import check_site
    from clients.governance.fit import kept_back, misfits, notes
    from common.study import load_study

    study = load_study(chosen.study) if chosen.study else None
    site, findings = check_site(chosen.folder)
    kept = []
    if site is not None and study is not None:
        findings, kept = list(misfits(study, site)), kept_back(study, site)
    if chosen.all:
        write_atomically(chosen.all, "".join(f"{finding}\n" for finding in findings).encode(), then="check again")
    hints = notes(site) if site is not None else []
    if chosen.json:
        content = {"ok": not findings, "findings": findings, "kept_back": kept, "notes": hints}
        print(json.dumps(content, indent=1, default=asdict))
        return 1 if findings else 0
    _complain(findings)
    for line in (*hints, *map(str, kept)):
        print(line)
    if site is None or findings:
        print(f"{len(findings)} finding(s): mend them, then check again", file=sys.stderr)
        return 1
    console = Console()
    console.print(f"{site.config.name}: a {site.config.role} site without findings")
    for split in SPLITS:
        labelled = len(site.patients(split, labelled=True))
        patients, frames = len(site.patients(split)), len(site.frames_of(split))
        console.print(f"  {split:9}  {patients:5} patients  {frames:6} frames  {labelled:5} patients with masks")
    return 0


def _init(chosen: argparse.Namespace) -> int:
    from clients.governance.state import State

    if (chosen.state / "secret").exists():
        State(chosen.state)
        made, text = False, f"{chosen.state} is a site's state folder already; nothing was changed"
    else:
        State.create(chosen.state)
        made = True
        text = (
            f"made {chosen.state}: the site's secret (never sent; back it up where patient data are kept), and room\n"
            "for approvals and the ledger. Look next at: crossprobe site dry-run --help"
        )
    print(json.dumps({"made": made}) if chosen.json else text)
    return 0


def _keygen(chosen: argparse.Namespace) -> int:
    from clients.node.keys import PUBLIC_KEY, make_node_keys

    made = make_node_keys(chosen.state)
    public = chosen.state / PUBLIC_KEY
    if chosen.json:
        print(json.dumps({"fingerprint": made, "public_key": str(public)}))
        return 0
    print(f"made the node's keys in {chosen.state}. They stay here, but for {public}: send it to the coordinator, and")
    print(f"tell the coordinator its fingerprint by another way, such as the telephone:\n  {made}")
    return 0


def _signing_key(chosen: argparse.Namespace) -> int:
    from clients.governance.state import State
    from common.signing import text_of

    text = text_of(State(chosen.state).signing_key().public_key())
    print(json.dumps({"key": text}) if chosen.json else text)
    return 0


def _leaves(chosen: argparse.Namespace) -> int:
    from clients.governance.disclosure import of_contract, of_study, page
    from common.study import load_study

    study = load_study(chosen.study) if chosen.study else None
    if study is None and chosen.role:
        raise CrossProbeError("--role chooses among a study's tasks: give the study's file too, or leave --role out.")
    leaving = of_study(study, [chosen.role] if chosen.role else ROLES) if study else of_contract()
    print(json.dumps([asdict(row) for row in leaving], indent=1) if chosen.json else page(leaving, study).rstrip())
    return 0


def _approve(chosen: argparse.Namespace) -> int:
    from clients.data.site import load_site
    from clients.governance.accountant import Accountant
    from clients.governance.approval import approve
    from clients.governance.approval_page import show
    from clients.governance.proposal import propose
    from clients.governance.state import State
    from common.fingerprint import fingerprint
    from common.signing import read_public_key, text_of
    from common.study import load_study

    state, study = State(chosen.state), load_study(chosen.study)
    site = load_site(chosen.site)
    proposal = propose(study, site, today=datetime.now(UTC).date(), accountant=Accountant(state.accountant))
    key = read_public_key(chosen.coordinator_key) if chosen.coordinator_key else None
    if not chosen.json:
        show(proposal, Console())
        print(
            f"Requests must be signed by the coordinator's key {fingerprint(key)}.\nCompare it over the telephone."
            if key
            else "Requests need no signature: another hospital, or who stands between the coordinator and you, can "
            "make some. Ask for the coordinator's key; give it with --coordinator-key."
        )
    _complain(proposal.findings)
    approval = None
    if not proposal.findings and (chosen.yes or (not chosen.json and _confirmed())):
        if chosen.restart:
            with state.locked():
                state.start_over(proposal.study_hash)
        approval = approve(
            state, site, study, by=chosen.by or getpass.getuser(), coordinator=text_of(key) if key else ""
        )
    if chosen.json:
        content = {"approved": approval is not None, "by": approval and approval.by, "when": approval and approval.when}
        print(json.dumps(content | {"proposal": asdict(proposal)}, indent=1, default=lambda model: model.model_dump()))
    elif approval is not None:
        print(
            f"approved by {approval.by} at {approval.when}: study {approval.study_hash[:16]}, policy "
            f"{approval.policy_hash[:16]}, software {approval.software}. It is void once any of them changes."
        )
    elif proposal.findings:
        print(f"{len(proposal.findings)} finding(s): this study cannot be approved here", file=sys.stderr)
    else:
        print("not approved; nothing was changed", file=sys.stderr)
    return 0 if approval is not None or (chosen.json and not proposal.findings and not chosen.yes) else 1


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise CrossProbeError("there is no terminal to ask at. Read the above, then give --yes to approve it.")
    return input("Approve this study for this site? Type `yes`: ").strip() == "yes"


def _withdraw(chosen: argparse.Namespace) -> int:
    from clients.governance.approval import withdraw
    from clients.governance.state import State
    from common.study import load_study

    state = State(chosen.state)
    is_hash = len(chosen.study) == 64 and set(chosen.study) <= set("0123456789abcdef")
    study_hash = chosen.study if is_hash else load_study(Path(chosen.study)).hash()
    withdrawn = withdraw(state, study_hash)
    if chosen.json:
        print(json.dumps({"withdrawn": withdrawn, "study": study_hash}))
    elif withdrawn:
        print(
            f"withdrawn: study {study_hash[:16]}. Nothing more of it leaves from now on, also not from a running task"
        )
    else:
        approved = ", ".join(path.stem[:16] for path in state.approvals()) or "none"
        raise SiteStateError(
            f"study {study_hash[:16]} is not approved here, so there is nothing to take back. Approved: {approved}."
        )
    return 0 if withdrawn else 1


def _dry_run(chosen: argparse.Namespace) -> int:
    from clients.data.site import load_site
    from clients.governance.dry_run import TABLE, dry_run
    from clients.governance.state import State
    from common.study import load_study

    state, study = State(chosen.state), load_study(chosen.study)
    sent = dry_run(study, load_site(chosen.site), state, chosen.out)
    if chosen.json:
        print(json.dumps([asdict(message) for message in sent], indent=1))
    else:
        table = Table(title=f"what study {study.name} would send")
        for column in ("message", "answer", "tensors", "bytes", "numbers"):
            table.add_column(column, overflow="fold")
        for message in sent:
            tensors = "\n".join(f"{name} ({count} tensors)" for name, (count, _) in message.tensors.items())
            numbers = str(len(message.metrics)) if len(message.metrics) > 5 else "\n".join(message.metrics)
            table.add_row(message.what, message.answer, tensors or "-", str(message.bytes), numbers or "-")
        Console().print(table)
        print(f"nothing was sent. Every byte and every number is in {chosen.out}; begin with {chosen.out / TABLE}")
    return 0 if all(message.answer == "ok" for message in sent) else 1


def _complain(findings: "tuple[Finding, ...] | list[Finding]") -> None:
    from clients.data.findings import grouped

    for line in grouped(findings):
        print(line, file=sys.stderr)
