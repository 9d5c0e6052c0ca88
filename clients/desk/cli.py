"""`crossprobe site desk` and `desk-forward`: the pages where the images are, and the way to them from a browser."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import click
import typer

from common.errors import RunError
from common.files import check_apart, private_folder
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

    Until Ctrl-C, at an address that it prints. This process opens images and listens at a Unix socket only; other
    sockets, programs and files than those named here it gives up.
    """
    if (models is None) != (predictions is None) or (images is not None and models is None):
        raise click.UsageError("--models and --predictions belong together, and --images to them: give both or none.")
    if predictions is not None:
        for folder in filter(None, (site_folder, images)):
            check_apart(folder, predictions)
        with contextlib.suppress(OSError):  # `only_desk` says what is wrong
            private_folder(predictions)
    beside = studies if studies.is_dir() else studies.parent
    with contextlib.ExitStack() as stack:
        path = socket or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crossprobe-"))) / "desk.sock"
        if socket is None:
            stack.enter_context(_forwarder(path, port))
        reads = filter(None, (site_folder, beside, coordinator_key, models, images, site_keys))
        notes = _give_up(reads, filter(None, (state_folder, predictions)), path.parent, site_folder)

        from clients.desk.desk import Desk
        from clients.desk.gate import PARAMETER, Gate
        from clients.desk.predictions import Places, only_desk
        from clients.desk.server import serving
        from clients.governance.state import State
        from clients.node.stop_signal import StopSignal
        from common.signing import public_key_beside, site_keys_beside

        places = Places(models, predictions, images) if models is not None and predictions is not None else None
        own = Desk(
            site_folder,
            State(state_folder),
            studies,
            key=public_key_beside(beside, coordinator_key),
            sites=site_keys_beside(beside, site_keys),
            places=places,
        )
        gate = Gate()
        if places is not None:
            stack.enter_context(only_desk(places))
        stack.enter_context(serving(own, gate, path, group=group))
        own.check_data()
        for sentence in notes:
            print(f"note: {sentence}", file=sys.stderr)
        print(f"The desk is at http://127.0.0.1:{port}/?{PARAMETER}={gate.token}", flush=True)
        print("Whoever has this address can approve: do not pass it on. It ends with this command.", flush=True)
        StopSignal().wait()


def desk_forward(
    socket: Annotated[Path, typer.Option(metavar="FILE", help="the desk's socket")],
    port: Port = DEFAULT_PORT,
    host: Annotated[str, typer.Option(help="0.0.0.0 only within a container that publishes it at 127.0.0.1")] = (
        "127.0.0.1"
    ),
    for_desk: Annotated[
        bool, typer.Option("--for-desk", hidden=True, help="say when it listens, and end with standard input")
    ] = False,
) -> None:
    """Bring the desk's pages from its socket to a port of this machine; this process needs no data."""
    import asyncio

    from clients.desk.forward import forward, forward_for_desk

    asyncio.run((forward_for_desk if for_desk else forward)(socket, host, port))


def _give_up(reads: Iterable[Path], writes: Iterable[Path], listens: Path, site: Path) -> list[str]:
    """Close what the desk does not need, before numpy and torch have threads; return what to tell of it."""
    from clients.node.jail import GIVEN_UP, enter
    from clients.node.surroundings import networks, surroundings

    reachable = networks()
    kept = enter(reads=reads, writes=writes, listens=[listens])
    return [*(kept or [GIVEN_UP]), *surroundings(site, reachable if kept else [])]


@contextlib.contextmanager
def _forwarder(socket: Path, port: int) -> Iterator[None]:
    """Run `desk-forward` as a process of its own. Raises RunError if it cannot have the port."""
    root = Path(__file__).resolve().parents[2]
    words = ["site", "desk-forward", "--socket", str(socket), "--port", str(port), "--for-desk"]
    # Ctrl-C is for the desk, which may signal nobody once it shows pages: this process ends when its input does.
    with subprocess.Popen(
        [sys.executable, str(root / "crossprobe.py"), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RunError(f"nothing brings the desk to port {port}: see above. Choose another with --port.")
        yield
