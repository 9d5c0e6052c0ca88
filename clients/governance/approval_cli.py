"""`crossprobe site approve`, `withdraw`, `dry-run`: what a hospital decides about a study, and what helps it to."""

import getpass
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from clients.governance.person_cli import ask_passphrase
from common.errors import CrossProbeError, SiteStateError
from common.files import check_apart
from common.options import Json, SiteFolder, StateFolder, StudyFile

if TYPE_CHECKING:
    from clients.data.findings import Finding


def approve(
    study_file: StudyFile,
    site_folder: SiteFolder,
    state_folder: StateFolder,
    yes: Annotated[bool, typer.Option("--yes", help="approve without being asked")] = False,
    by: Annotated[str | None, typer.Option(help="who approves (default: the user who runs this)")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="let the study begin again at its first round")] = False,
    coordinator_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="take requests signed by this key only; else coordinator.pub beside STUDY"),
    ] = None,
    site_keys: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="the hospitals' signing keys, NAME.pub, for sums under masks; else sites beside STUDY"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a study would do and send here, and allow it."""
    from clients.data.site import load_site
    from clients.governance.accountant import Accountant
    from clients.governance.approval import approval_of
    from clients.governance.approval_page import show
    from clients.governance.approval_words import signature, summed_with
    from clients.governance.persons import approve_by_policy, name_of
    from clients.governance.proposal import propose
    from clients.governance.state import State
    from common.fingerprint import fingerprint
    from common.signing import public_key_beside, site_keys_beside, text_of
    from common.study import load_study

    state, study = State(state_folder), load_study(study_file)
    site = load_site(site_folder)
    others = site_keys_beside(study_file.parent, site_keys)
    key = public_key_beside(study_file.parent, coordinator_key)
    known = fingerprint(key) if key else None
    before = approval_of(state, study.hash())
    if before is not None and before.coordinator and key is None:
        raise SiteStateError(
            f"the approval that is there takes requests signed by {before.coordinator_fingerprint} alone, and this one "
            "would take unsigned ones. Give --coordinator-key, or withdraw the approval first. Nothing was changed."
        )
    proposal = propose(
        study,
        site,
        today=datetime.now(UTC).date(),
        accountant=Accountant(state.accountant),
        declared=state.answered(study.hash()).declared,
    )
    if not as_json:
        show(proposal, Console())
        print(signature(known))
        for line in summed_with(proposal, {name: fingerprint(key) for name, key in others.items()}):
            print(line)
    complain(proposal.findings)
    approval = None
    if not proposal.findings and (yes or (not as_json and _confirmed())):
        name = _account() if by is None else by
        if not name.strip():
            raise SiteStateError("an approval needs the name of who gives it: --by 'Anna Berg'. Nothing was approved.")
        name = name_of(name)
        approval = approve_by_policy(
            state,
            site,
            study,
            name=name,
            passphrase=ask_passphrase(name) if site.config.policy.approvals_needed > 1 else "",
            coordinator=text_of(key) if key else "",
            sites={name: text_of(own) for name, own in others.items()},
            restart=restart,
        )
    if as_json:
        content = {
            "approved": approval is not None and not approval.void(site.config),
            "by": approval and approval.names,
            "when": approval and approval.when,
            "coordinator_key": approval.coordinator_fingerprint if approval else known,
            "site_keys": {name: fingerprint(key) for name, key in others.items()},
        }
        print(json.dumps(content | {"proposal": asdict(proposal)}, indent=1, default=lambda model: model.model_dump()))
    elif approval is not None:
        print(
            f"approved by {approval.names} at {approval.when}: study {approval.study_hash[:16]}, policy "
            f"{approval.policy_hash[:16]}, software {approval.software}. It is void once any of them changes."
        )
        print(f"Requests are answered if signed by {known}." if known else "Requests are answered without a signature.")
        for finding in approval.void(site.config):
            print(f"It does not hold yet: {finding.message}. {finding.remedy}.")
    elif proposal.findings:
        print(f"{len(proposal.findings)} finding(s): this study cannot be approved here", file=sys.stderr)
    else:
        print("not approved; nothing was changed", file=sys.stderr)
    if approval is None and (proposal.findings or yes or not as_json):
        raise typer.Exit(1)


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # as in a container, whose user is a mere number
        return ""


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise CrossProbeError("there is no terminal to ask at. Read the above, then give --yes to approve it.")
    return input("Approve this study for this site? Type `yes`: ").strip() == "yes"


def withdraw(
    study_file: Annotated[str, typer.Argument(metavar="STUDY", help="study file (YAML), or a study's hash")],
    state_folder: StateFolder,
    by: Annotated[str | None, typer.Option(help="who withdraws it (default: the user who runs this)")] = None,
    as_json: Json = False,
) -> None:
    """Take an approval back."""
    from clients.governance.approval import withdraw
    from clients.governance.persons import name_of
    from clients.governance.state import State
    from common.study import load_study

    state = State(state_folder)
    is_hash = len(study_file) == 64 and set(study_file) <= set("0123456789abcdef")
    study_hash = study_file if is_hash else load_study(Path(study_file)).hash()
    withdrawn = withdraw(state, study_hash, by=name_of(by or _account() or f"user {os.getuid()}"))
    if as_json:
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
    if not withdrawn:
        raise typer.Exit(1)


def dry_run(
    study_file: StudyFile,
    site_folder: SiteFolder,
    state_folder: StateFolder,
    out: Annotated[Path, typer.Option(metavar="DIR", help="new folder for the messages and their table")],
    as_json: Json = False,
) -> None:
    """Write exactly what a study would send, without sending it."""
    from clients.data.site import load_site
    from clients.governance.dry_run import TABLE, dry_run
    from clients.governance.state import State
    from common.study import load_study

    state, study = State(state_folder), load_study(study_file)
    check_apart(site_folder, out)
    site = load_site(site_folder)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("trying every task", total=None)
        sent = dry_run(
            study, site, state, out, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if as_json:
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
        refused = sorted({message.answer for message in sent} - {"ok"})
        if refused:
            print(f"this study would be refused here, at least in part: {', '.join(refused)}")
        print(f"nothing was sent. Every byte and every number is in {out}; begin with {out / TABLE}")
    if not all(message.answer == "ok" for message in sent):
        raise typer.Exit(1)


def complain(findings: "Sequence[Finding]") -> None:
    """Print findings to stderr, those of a kind together."""
    from clients.data.findings import grouped

    for line in grouped(findings):
        print(line, file=sys.stderr)
