"""The hospital's commands: `crossprobe site`, `worker`, `ledger`, `predict` and `export`."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from clients.export.cli import app as export
from clients.governance.cli import app as site
from clients.node.cli import app as node
from common.options import (
    ADDRESS_VARIABLE,
    CA_VARIABLE,
    Address,
    Ca,
    Json,
    OneNetwork,
    Overwrite,
    commands,
    examples,
    number,
)

app = commands()
app.add_typer(site, name="site")
app.add_typer(node)
app.add_typer(export)


@app.command(
    epilog=examples(
        "crossprobe predict --model runs/demo --images scans/ --out segmented/",
        "crossprobe predict --model runs/demo --images scans/ --out segmented/ --spacing-mm 0.12",
        "crossprobe predict --model runs/demo --images scans/ --out segmented/ --network target_branch",
    )
)
def predict(
    model: Annotated[Path, typer.Option(metavar="DIR", help="a release, or the finished run that holds it")],
    images: Annotated[Path, typer.Option(help="a file, a folder, or a CSV with `image` and `spacing_mm`")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to write to")],
    coordinator_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="use only a release that this key signed")
    ] = None,
    spacing_mm: Annotated[
        float | None, typer.Option(parser=number, help="side of a pixel in mm, where neither file nor CSV tells it")
    ] = None,
    network: OneNetwork = None,
    overwrite: Overwrite = False,
) -> None:
    """Segment images and cine loops (PNG, JPEG, TIFF, DICOM, NIfTI, MP4 and others) with a released model.

    Writes OUT/masks (0 and 255), OUT/confidence (0 undecided to 255 certain) and OUT/overlays, named and sized as the
    images, and OUT/results.csv: area, confidence, and where a person should look again. DICOM gets a DICOM Segmentation
    and NIfTI a NIfTI mask in OUT/segmentations, a video an overlay video.
    """
    from clients.data.findings import one_line
    from clients.predict import TABLE, predict
    from clients.released import load_model
    from common.signing import read_public_key

    trained = load_model(model, read_public_key(coordinator_key) if coordinator_key else None, network=network)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("segmenting", total=None)
        outcome = predict(
            trained,
            images,
            out,
            spacing_mm=spacing_mm,
            overwrite=overwrite,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    again = sum(bool(row.look_again) for row in outcome.rows)
    print(f"{len(outcome.rows)} images segmented, written to {out}; {again} to look at again, see {TABLE}")
    print(f"done: {len(outcome.done)} files; skipped: {len(outcome.skipped)}; failed: {len(outcome.problems)}")
    for name in outcome.skipped:
        print(one_line(f"skipped, not taken for an image: {name}"))
    for problem in outcome.problems:
        print(one_line(f"failed: {problem}"), file=sys.stderr)
    if outcome.problems:
        print(f"{len(outcome.problems)} files were NOT segmented, or not whole; they are named above", file=sys.stderr)
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "crossprobe doctor",
        "crossprobe doctor --state /srv/crossprobe --address fl.example.org:443 --ca ca.crt",
        "crossprobe doctor --port 443 --certificate kits/coordinator/server.crt --json",
    )
)
def doctor(
    runs: Annotated[Path, typer.Option(metavar="DIR", help="where runs are to be written")] = Path("runs"),
    state: Annotated[Path | None, typer.Option(metavar="DIR", help="a site's or a node's state folder")] = None,
    certificate: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="when does it end? repeat")] = None,
    port: Annotated[
        list[int] | None, typer.Option(min=1, max=65535, help="is it free? repeat (default: 9443, the proxy's)")
    ] = None,
    address: Address = "",
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Tell what this machine lacks and how to mend it.

    Looks at python, torch, GPU, cores, memory, disk, Docker, ports, clock, the rights of a state folder, the end of
    certificates, and with --address and --ca at the way to the coordinator. Changes nothing. Exit code 1 if something
    has to be mended.
    """
    address = address or os.environ.get(ADDRESS_VARIABLE, "")
    ca = ca or (Path(os.environ[CA_VARIABLE]) if os.environ.get(CA_VARIABLE) else None)
    host, _, number = address.rpartition(":")
    if address and (not host or not number.isdigit() or not 0 < int(number) < 65536):
        raise click.UsageError(f"--address: expected HOST:PORT, found {address}")
    if address and ca is None:
        raise click.UsageError("--address needs --ca, the ca.crt of the kit: who else could answer for it?")

    from clients.doctor import examine

    checks = examine(
        runs,
        state=state,
        certificates=certificate or (),
        ports=port or (9443,),
        address=(host.strip("[]"), int(number)) if address else None,
        ca=ca,
    )
    wrong = sum(check.level == "mend" for check in checks)
    if as_json:
        print(json.dumps({"ok": not wrong, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        table = Table()
        for column in ("", "check", "found", "how to fix"):
            table.add_column(column, overflow="fold")  # a path is of use as a whole
        for check in checks:
            table.add_row(check.level, *map(escape, (check.check, check.found, check.fix)))
        Console().print(table)
        print(f"{wrong} to mend" if wrong else "nothing to mend", file=sys.stderr if wrong else sys.stdout)
    if wrong:
        raise typer.Exit(1)
