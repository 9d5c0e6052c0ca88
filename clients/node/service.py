"""The worker's process: a gRPC server on a Unix socket in front of a `Gatekeeper`.

The kernel decides who may connect: the socket belongs to the worker's user and one group, mode 0660.
"""

import grp
import logging
import os
import signal
import socket as socketlib
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import grpc

from clients.data.site import Site
from clients.governance.state import State
from clients.node.channel import METHOD, SERVICE, address, options
from clients.node.gatekeeper import Gatekeeper
from common.errors import SiteStateError
from common.messages import MAX_MESSAGE_BYTES

log = logging.getLogger("crossprobe.worker")

#: Only one task runs at a time; the other threads say `busy` or answer enrolments meanwhile.
_THREADS = 4
#: For a cancelled task to end its step when the worker stops, in seconds.
_GRACE_S = 5.0


class _Running(Protocol):
    def is_active(self) -> bool:
        """Whether somebody still waits for the reply."""


@contextmanager
def serving(
    worker: Gatekeeper, socket: Path, *, group: str | None = None, max_bytes: int = MAX_MESSAGE_BYTES
) -> Iterator[None]:
    """Answer messages at `socket` for as long as the block runs; tasks that run at its end are cancelled.

    Args:
        group: name of the group that may connect, beside the worker's own user; default: the user's own.
        max_bytes: largest message either way.

    Raises:
        SiteStateError: if the socket's path is too long, another server has it, something that is no
            socket lies there, or the group does not exist.
    """
    target = address(socket)
    stopping = threading.Event()

    def reply(payload: bytes, context: _Running) -> bytes:
        return worker.handle(payload, lambda: stopping.is_set() or not context.is_active())

    _remove_stale(socket)
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=options(max_bytes))
    handler = grpc.unary_unary_rpc_method_handler(reply)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    before = os.umask(0o117)  # so that the socket is never open to others, not even for a moment
    try:
        server.add_insecure_port(target)
    except RuntimeError:
        raise SiteStateError(f"cannot listen at {socket}. Check that its folder exists and is writable.") from None
    finally:
        os.umask(before)
    try:
        if group is not None:
            _give_to(socket, group)
        server.start()
        yield
    finally:
        stopping.set()
        server.stop(_GRACE_S).wait()
        socket.unlink(missing_ok=True)


def run(site: Site, state: State, socket: Path, *, group: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        SiteStateError: if the state folder or the socket is in use, or the ledger is damaged.
    """
    stop = threading.Event()
    for sort in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sort, lambda *_: stop.set())
    with state.locked():
        worker = Gatekeeper(site, state)
        with serving(worker, socket, group=group):
            log.warning("%s: answering at %s", site.config.name, socket)
            stop.wait()
        log.warning("%s: stopped", site.config.name)
        if worker.at_work:
            # A task that does not end by itself must not write to the ledger once the folder is let go.
            os._exit(0)


def _remove_stale(socket: Path) -> None:
    """Remove what a server that was killed left behind.

    gRPC would take over a socket that another server still listens at, without a word. No lock file says so:
    the socket's folder may be one where others can write, and only the state's own lock lies out of their reach.
    """
    try:
        if not stat.S_ISSOCK(socket.lstat().st_mode):
            raise SiteStateError(f"{socket} is not a socket. Choose another path for it; nothing was removed.")
        if _listens(socket):
            raise SiteStateError(
                f"another worker already listens at {socket}. Stop it first; two would answer the same messages."
            )
        socket.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SiteStateError(f"cannot replace {socket}: {error.strerror}.") from None


def _listens(path: Path) -> bool:
    """Return whether a process accepts connections at a socket, busy or not; after a killed one none does."""
    with socketlib.socket(socketlib.AF_UNIX, socketlib.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # so many wait that no more fit
            return True
    return True


def _give_to(socket: Path, group: str) -> None:
    try:
        os.chown(socket, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        raise SiteStateError(f"there is no group `{group}` here. Make it, or leave --group out.") from None
    except OSError as error:
        raise SiteStateError(f"cannot give {socket} to the group `{group}`: {error.strerror}.") from None
