"""`crossprobe provision`: certificates, and a startup kit for each hospital, who looks at it with `check-kit`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import click
import typer

from common.options import Json, commands, examples

app = commands()


@app.command(
    epilog=examples(
        "crossprobe provision configs/demo.yaml --out kits",
        "crossprobe provision study.yaml --out kits --address fl.example.org --port 443 \\\n"
        "      --site north-clinic:source --site east-clinic:target",
        "crossprobe provision study.yaml --out kits --add --site west-clinic:target",
        "crossprobe provision --out kits --renew",
    )
)
def provision(
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for the kits; keep it out of version control")],
    study_file: Annotated[Path | None, typer.Argument(metavar="[STUDY]", help="study file (YAML)")] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST", help="by which hospitals reach the coordinator (proxy)")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="port of it (9443)")] = None,
    site: Annotated[list[str] | None, typer.Option(metavar="NAME:ROLE", help="a hospital; give one for each")] = None,
    add: Annotated[bool, typer.Option("--add", help="only add the --site kits to those in OUT")] = False,
    renew: Annotated[bool, typer.Option("--renew", help="only renew the server's certificate; needs OUT/ca")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing authority")] = False,
) -> None:
    """Make certificates and a startup kit for each hospital.

    Makes a federation's certificate authority and the startup kits: one folder for the coordinator, one for each
    hospital. Hospitals make their own keys, see the README.md in each kit.
    """
    if add + renew + overwrite > 1:
        raise click.UsageError("--add, --renew and --overwrite are three different things: give one of them")

    from common.components import ROLES
    from common.study import load_study
    from server.federation.provision import add_sites, parse_site, renew_server, signing_fingerprint, valid_host
    from server.federation.provision import provision as make_kits

    if renew:
        if study_file or site or address is not None or port is not None:
            raise click.UsageError("--renew takes --out only: names and authority stay as they are")
        print(f"the server's new certificate ends on {renew_server(out):%Y-%m-%d}; no hospital needs a new file.")
        print("Bring server.key and server.crt to the server, then there: docker compose restart superlink proxy")
        return
    if study_file is None:
        raise click.UsageError("which study? Give its file")
    if add:
        if not site or address is not None or port is not None:
            raise click.UsageError("--add needs --site; it takes address and port from the coordinator's kit in OUT")
        for kit in add_sites(load_study(study_file), study_file, out, [parse_site(text) for text in site]):
            print(f"{kit}: begin with {kit / 'README.md'}")
            print(f"then register its keys: crossprobe study register {kit.name} node.pub signing.pub")
        return
    try:
        host = valid_host("proxy" if address is None else address)
    except ValueError as error:
        raise click.UsageError(f"--address: {error}") from None
    sites = [parse_site(text) for text in site or ("source:source", "target:target")]
    study = load_study(study_file)
    kits = make_kits(study, study_file, out, sites, host=host, port=port or 9443, overwrite=overwrite)
    print("\n".join(f"{kit}: begin with {kit / 'README.md'}" for kit in kits))
    for role in ROLES:
        named, needed = sum(own.role == role for own in sites), study.needs(role)
        if named < needed:
            print(f"note: the study needs {needed} {role} site(s) and {named} are named: add them with --add --site")
    print(f"{out / 'ca'}: the authority's key; take it off this machine and keep it safe")
    print("Each hospital approves the key that signs your requests: compare its fingerprint over the telephone. It is")
    print(f"  {signing_fingerprint(out)}")


@app.command(
    "check-kit",
    epilog=examples(
        "crossprobe check-kit kits/east-clinic --site east-clinic:target",
        "crossprobe check-kit kits/east-clinic --site east-clinic:target --in-use",
    ),
)
def check_kit(
    kit: Annotated[Path, typer.Argument(metavar="KIT", help="a hospital's kit, as it came")],
    site: Annotated[str, typer.Option(metavar="NAME:ROLE", help="the hospital's name and role in the study")],
    in_use: Annotated[
        bool, typer.Option("--in-use", help="its folders hold this hospital's own files by now: do not name them")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare a hospital's kit with the one that this checkout makes.

    The kit comes from the coordinator, and its compose.yaml decides what has the images and what has a network. Run
    this at the hospital, from a checkout that did not come from the coordinator, before anything in the kit is started.
    A secret, a key or an approval that is in it already was made by whoever sent it.
    """
    from server.federation.kit_check import check_kit
    from server.federation.provision import parse_site

    found = check_kit(kit, parse_site(site), in_use=in_use)
    if as_json:
        print(json.dumps({"as_made": not found, "findings": found}, indent=1))
    elif found:
        print("\n".join(found), file=sys.stderr)
        print(f"{len(found)} finding(s): do not start it before the coordinator has explained each", file=sys.stderr)
    else:
        print(f"{kit} is the kit that this version makes for {site}")
    if found:
        raise typer.Exit(1)
