"""`crossprobe site desk` and `desk-forward`: the pages where the images are, and the way to them from a browser."""

import contextlib
import socket as socketlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import click
import typer

from common.errors import RunError
from common.options import SiteFolder, StateFolder

DEFAULT_PORT = 8600
EXAMPLE = "crossprobe site desk --site /data/our-site --state /srv/crossprobe --study study.yaml"
Port = Annotated[int, typer.Option(min=1, max=65535, help="of 127.0.0.1, where the browser finds the desk")]


def desk(
    site_folder: SiteFolder,
    state_folder: StateFolder,
    studies: Annotated[Path, typer.Option("--study", metavar="PATH", help="a study file, or a folder of them")],
    port: Port = DEFAULT_PORT,
    socket: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="show the pages here only; `desk-forward` then brings them to the port"),
    ] = None,
    group: Annotated[str | None, typer.Option(help="group that may connect to the socket, beside this user")] = None,
    coordinator_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="requests and models need a signature by this key; else coordinator.pub of --study, where it is",
        ),
    ] = None,
    models: Annotated[
        Path | None, typer.Option(metavar="DIR", help="a release, or a folder of them, to segment own images with")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="with --models: a folder for what they draw; it stays here")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="with --models: further images, beside those of the site")
    ] = None,
    site_keys: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="the hospitals' signing keys, NAME.pub; else the folder sites of --study"),
    ] = None,
) -> None:
    """Look after the site in a browser: check, dry run, approve, withdraw, ledger, predictions.

    Until Ctrl-C, at an address that it prints. This process opens images and listens at a Unix socket only.
    """
    from clients.desk.desk import Desk
    from clients.desk.gate import PARAMETER, Gate
    from clients.desk.predictions import Places, only_desk
    from clients.desk.server import serving, until_stopped
    from clients.governance.state import State
    from clients.node.surroundings import networks, surroundings
    from clients.predict import check_places
    from common.signing import public_key_beside, site_keys_beside

    if (models is None) != (predictions is None) or (images is not None and models is None):
        raise click.UsageError("--models and --predictions belong together, and --images to them: give both or none.")
    places = Places(models, predictions, images) if models is not None and predictions is not None else None
    beside = studies if studies.is_dir() else studies.parent
    own = Desk(
        site_folder,
        State(state_folder),
        studies,
        key=public_key_beside(beside, coordinator_key),
        sites=site_keys_beside(beside, site_keys),
        places=places,
    )
    gate = Gate()
    with contextlib.ExitStack() as stack:
        if places is not None:
            for folder in filter(None, (site_folder, places.images)):
                check_places(folder, places.kept)
            stack.enter_context(only_desk(places))
        path = socket or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crossprobe-"))) / "desk.sock"
        stack.enter_context(serving(own, gate, path, group=group))
        if socket is None:
            stack.enter_context(_forwarder(path, port))
        own.check_data()
        for sentence in surroundings(site_folder, networks()):
            print(f"note: {sentence}", file=sys.stderr)
        print(f"The desk is at http://127.0.0.1:{port}/?{PARAMETER}={gate.token}", flush=True)
        print("Whoever has this address can approve: do not pass it on. It ends with this command.", flush=True)
        until_stopped()


def desk_forward(
    socket: Annotated[Path, typer.Option(metavar="FILE", help="the desk's socket")],
    port: Port = DEFAULT_PORT,
    host: Annotated[str, typer.Option(help="0.0.0.0 only within a container that publishes it at 127.0.0.1")] = (
        "127.0.0.1"
    ),
) -> None:
    """Bring the desk's pages from its socket to a port of this machine; this process needs no data."""
    import asyncio

    from clients.desk.forward import forward

    asyncio.run(forward(socket, host, port))


@contextlib.contextmanager
def _forwarder(socket: Path, port: int) -> Iterator[None]:
    """Run `desk-forward` as a process of its own. Raises RunError if it cannot have the port."""
    root = Path(__file__).resolve().parents[2]
    words = ["site", "desk-forward", "--socket", str(socket), "--port", str(port)]
    # Ctrl-C is for the desk, which then ends this one, too.
    process = subprocess.Popen([sys.executable, str(root / "crossprobe.py"), *words], start_new_session=True)
    try:
        while process.poll() is None and not _taken(port):
            time.sleep(0.1)
        if process.poll() is not None:
            raise RunError(f"nothing brings the desk to port {port}: see above. Choose another with --port.")
        yield
    finally:
        process.terminate()
        process.wait()


def _taken(port: int) -> bool:
    with socketlib.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
