"""The worker's process: a gRPC server on a Unix socket in front of a `Gatekeeper`.

The kernel decides who may connect: the socket belongs to the worker's user and one group, mode 0660.
"""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import grpc

from clients.data.site import Site
from clients.governance.state import State
from clients.governance.witness import witness_of
from clients.node.channel import METHOD, SERVICE, address, options
from clients.node.gatekeeper import Gatekeeper
from clients.node.socket_file import UMASK, give_to, remove_stale
from clients.node.stop_signal import StopSignal
from clients.node.surroundings import alone_on
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

    remove_stale(socket)
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=options(max_bytes))
    handler = grpc.unary_unary_rpc_method_handler(reply)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    before = os.umask(UMASK)
    try:
        server.add_insecure_port(target)
    except RuntimeError:
        raise SiteStateError(f"cannot listen at {socket}. Check that its folder exists and is writable.") from None
    finally:
        os.umask(before)
    try:
        if group is not None:
            give_to(socket, group)
        server.start()
        yield
    finally:
        stopping.set()
        server.stop(_GRACE_S).wait()
        socket.unlink(missing_ok=True)


def run(
    site: Site,
    state: State,
    socket: Path,
    *,
    group: str | None = None,
    witness: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        notes: what the log is to say at the start, besides what this finds.
        witness: where the ledger's heads are told, see `clients.governance.witness`; None: nowhere.

    Raises:
        SiteStateError: if the state folder, the site's folder or the socket is in use, or the ledger is damaged.
    """
    stop = StopSignal()
    with state.locked(), alone_on(site.folder) as without:
        heads = (lambda head: None) if witness is None else witness_of(witness, site.config.name)
        worker = Gatekeeper(site, state, witness=heads)
        for sentence in filter(None, (*notes, without)):
            log.warning("%s: %s", site.config.name, sentence)
        with serving(worker, socket, group=group):
            log.warning("%s: answering at %s", site.config.name, socket)
            stop.wait()
        log.warning("%s: stopped", site.config.name)
        if worker.at_work:
            # A task that does not end by itself must not write to the ledger once the folder is let go.
            os._exit(0)
