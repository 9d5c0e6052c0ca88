"""`crossprobe site`: what a hospital does with its own folder, its state and the studies it is asked to join."""

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from clients.data.intake.cli import new
from clients.desk.cli import EXAMPLE as DESK_EXAMPLE
from clients.desk.cli import desk, desk_forward
from clients.governance.approval_cli import approve, complain, dry_run, withdraw
from clients.governance.person_cli import app as person
from common.errors import CrossProbeError
from common.files import check_outside, write_atomically
from common.options import Json, StateFolder, commands, examples

if TYPE_CHECKING:
    from clients.data.site import Site

app = commands(
    help="Look after a hospital's folder, state and studies.",
    no_args_is_help=True,
    epilog=examples(
        "crossprobe site new /archive/wrist /data/our-site --role target",
        "crossprobe site check /data/our-site",
        "crossprobe site init --state /srv/crossprobe",
        "crossprobe site keygen --state /srv/crossprobe-node",
        "crossprobe site disclosure study.yaml --role source",
        "crossprobe site dry-run study.yaml --site /data/our-site --state /srv/crossprobe --out dry-run",
        "crossprobe site approve study.yaml --site /data/our-site --state /srv/crossprobe",
        "crossprobe site withdraw study.yaml --state /srv/crossprobe",
        DESK_EXAMPLE,
        note="They stand in the order of a first study; the last does it all in a browser.",
    ),
)


app.command(epilog=examples("crossprobe site new /archive/wrist /data/our-site --role target"))(new)
app.command(epilog=examples(DESK_EXAMPLE, f"{DESK_EXAMPLE} \\\n      --models models --predictions predictions"))(desk)
app.add_typer(person, name="person")
app.command("desk-forward", epilog=examples("crossprobe site desk-forward --socket /run/desk/desk.sock"))(desk_forward)


@app.command(
    epilog=examples(
        "crossprobe site check /data/our-site",
        "crossprobe site check /data/our-site --study study.yaml",
        "crossprobe site check /data/our-site --all findings.txt --html check.html",
    )
)
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder with site.yaml and manifest.csv")],
    study_file: Annotated[
        Path | None,
        typer.Option(
            "--study",
            metavar="STUDY",
            help="also tell what its policy refuses, and for which tasks and numbers it is too small",
        ),
    ] = None,
    write_all: Annotated[
        Path | None, typer.Option("--all", metavar="FILE", help="write all findings to FILE; three of a kind are shown")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a page with numbers and pictures; it stays at the site")
    ] = None,
    as_json: Json = False,
) -> None:
    """Report everything that is wrong with a site folder."""
    from clients.data.site import check_site
    from clients.governance.fit import kept_back, notes
    from common.study import load_study

    for written in filter(None, (write_all, html)):
        check_outside(written, folder)
    study = load_study(study_file) if study_file else None
    site, findings = check_site(folder)
    kept = []
    if site is not None and study is not None:
        from clients.governance.proposal import propose

        findings = list(propose(study, site, today=datetime.now(UTC).date()).findings)
        kept = kept_back(study, site)
    if write_all:
        write_atomically(write_all, "".join(f"{finding}\n" for finding in findings).encode(), then="check again")
    if html:
        from clients.data.contact_sheet import write_sheet

        write_sheet(html, folder, site, findings)
    hints = notes(site) if site is not None else []
    splits = _counts(site) if site is not None else {}
    if as_json:
        content = {"ok": not findings, "findings": findings, "kept_back": kept, "notes": hints, "splits": splits}
        print(json.dumps(content, indent=1, default=asdict))
        raise typer.Exit(1 if findings else 0)
    complain(findings)
    for line in (*hints, *map(str, kept)):
        print(line)
    if site is None or findings:
        print(f"{len(findings)} finding(s): mend them, then check again", file=sys.stderr)
        raise typer.Exit(1)
    console = Console()
    console.print(f"{site.config.name}: a {site.config.role} site without findings")
    for split, counts in splits.items():
        patients, frames, labelled = counts.values()
        console.print(f"  {split:9}  {patients:5} patients  {frames:6} frames  {labelled:5} patients with masks")


@app.command(epilog=examples("crossprobe site init --state /srv/crossprobe"))
def init(state_folder: StateFolder, as_json: Json = False) -> None:
    """Make the state folder and its secret, once; the coordinator gets signing.pub."""
    from clients.governance.state import State
    from common.fingerprint import fingerprint

    if (state_folder / "secret").exists():
        state, made = State(state_folder), False
        text = (
            f"{state_folder} is a site's state folder already; nothing was changed. If nobody here made it, it "
            "came with the kit, and whoever sent that has its secret: remove the folder, and give this command again"
        )
    else:
        state, made = State.create(state_folder), True
        text = (
            f"made {state_folder}: the site's secret (never sent; back it up where patient data are kept), and room\n"
            f"for approvals and the ledger. Send {state.public_key} to the coordinator: by it your replies count.\n"
            "Tell its fingerprint by another way, such as the telephone:\n"
            f"  {fingerprint(state.signing_key().public_key())}\n"
            "Look next at: crossprobe site dry-run --help"
        )
    known = fingerprint(state.signing_key().public_key())
    print(json.dumps({"made": made, "signing_key": known}) if as_json else text)


@app.command(epilog=examples("crossprobe site keygen --state /srv/crossprobe-node"))
def keygen(
    state_folder: Annotated[
        Path, typer.Option("--state", metavar="DIR", help="the node's own folder; the worker never sees it")
    ],
    as_json: Json = False,
) -> None:
    """Make the node's keys, once; the coordinator gets node.pub."""
    from clients.node.keys import PUBLIC_KEY, make_node_keys

    made = make_node_keys(state_folder)
    public = state_folder / PUBLIC_KEY
    if as_json:
        print(json.dumps({"fingerprint": made, "public_key": str(public)}))
        return
    print(f"made the node's keys in {state_folder}. They stay here, but for {public}: send it to the coordinator, and")
    print(f"tell the coordinator its fingerprint by another way, such as the telephone:\n  {made}")


@app.command(epilog=examples("crossprobe site signing-key --state /srv/crossprobe"))
def signing_key(state_folder: StateFolder, as_json: Json = False) -> None:
    """Print the key by which the coordinator knows your replies."""
    from clients.governance.state import State
    from common.signing import text_of

    text = text_of(State(state_folder).signing_key().public_key())
    print(json.dumps({"key": text}) if as_json else text)


@app.command(epilog=examples("crossprobe site disclosure", "crossprobe site disclosure study.yaml --role source"))
def disclosure(
    study_file: Annotated[
        Path | None, typer.Argument(metavar="[STUDY]", help="study file (YAML); without it, whatever the study")
    ] = None,
    role: Annotated[
        Literal["source", "target"] | None, typer.Option(help="of a study: only what leaves sites of this role")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell in Markdown all that can leave a site, or does in one study."""
    from clients.governance.disclosure import of_contract, of_study, page
    from common.components import ROLES
    from common.study import load_study

    study = load_study(study_file) if study_file else None
    if study is None and role:
        raise CrossProbeError("--role chooses among a study's tasks: give the study's file too, or leave --role out.")
    leaving = of_study(study, [role] if role else ROLES) if study else of_contract()
    print(json.dumps([asdict(row) for row in leaving], indent=1) if as_json else page(leaving, study).rstrip())


app.command(
    epilog=examples(
        "crossprobe site approve study.yaml --site /data/our-site --state /srv/crossprobe",
        "crossprobe site approve study.yaml --site /data/our-site --state /srv/crossprobe --yes --by 'Anna Berg'",
    )
)(approve)
app.command(epilog=examples("crossprobe site withdraw study.yaml --state /srv/crossprobe"))(withdraw)
app.command(
    "dry-run",
    epilog=examples("crossprobe site dry-run study.yaml --site /data/our-site --state /srv/crossprobe --out dry-run"),
)(dry_run)


def _counts(site: "Site") -> dict[str, dict[str, int]]:
    """Of each split: patients, frames, and patients with masks."""
    from clients.data.manifest import SPLITS

    return {
        split: {
            "patients": len(site.patients(split)),
            "frames": len(site.frames_of(split)),
            "labelled": len(site.patients(split, labelled=True)),
        }
        for split in SPLITS
    }
