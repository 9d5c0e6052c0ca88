"""The way from the thin ClientApp to the worker: gRPC over a Unix socket, plain bytes both ways.

Torch-free, and without generated code: grpcio-tools wants a protobuf that Flower forbids. A message's
own header and tensors are in its bytes, see `common.messages`.
"""

import os
import time
from pathlib import Path

import grpc

from clients.node.refusals import refusal
from clients.node.socket_file import listens
from common.errors import SiteStateError
from common.messages import MAX_MESSAGE_BYTES, pack

SERVICE, METHOD = "crossprobe.Worker", "Ask"
#: How long a worker that is being restarted is waited for, in seconds.
CONNECT_S = 10.0
#: A Unix socket's address holds 108 bytes, the last of them a zero.
MAX_SOCKET_PATH = 107

#: What gRPC can hold of a time in milliseconds.
_LONGEST_MS = 2**31 - 1

_CODES = {
    grpc.StatusCode.UNAVAILABLE: "worker-unreachable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "worker-timeout",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "too-large",
}


def options(max_bytes: int = MAX_MESSAGE_BYTES) -> list[tuple[str, int]]:
    """Return gRPC's settings for either side; its own limit of 4 MiB would refuse a model."""
    return [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", max_bytes),
        ("grpc.enable_http_proxy", 0),
    ]


def address(path: Path) -> str:
    """Return gRPC's name of a socket.

    Raises:
        SiteStateError: if the path is longer than the kernel allows.
    """
    target = str(path.absolute())
    if len(os.fsencode(target)) > MAX_SOCKET_PATH:
        raise SiteStateError(
            f"the socket's path has {len(os.fsencode(target))} bytes, the kernel allows {MAX_SOCKET_PATH}: {target}. "
            "Choose a shorter one, e.g. /run/crossprobe/worker.sock"
        )
    return f"unix:{target}"


def ask(path: Path, payload: bytes, timeout_s: float, *, connect_s: float = CONNECT_S) -> bytes:
    """Return the worker's reply to a message, or a refusal that says why there is none.

    Args:
        timeout_s: for all of it, from now.
        connect_s: of it, how long a worker that does not answer at all is waited for.
    """
    deadline = time.monotonic() + timeout_s
    try:
        target = address(path)
    except SiteStateError:
        return pack(refusal("worker-unreachable"))
    give_up = time.monotonic() + min(connect_s, timeout_s)
    while not _listening(path):
        if time.monotonic() > give_up:
            return pack(refusal("worker-unreachable"))
        time.sleep(0.1)
    # gRPC gives a server that listens 20 s for its first word; one that stands still for longer is still there.
    patience = ("grpc.min_reconnect_backoff_ms", min(int(timeout_s * 1000), _LONGEST_MS))
    with grpc.insecure_channel(target, [*options(), patience]) as channel:
        try:
            reply: bytes = channel.unary_unary(f"/{SERVICE}/{METHOD}")(
                payload, timeout=max(0.0, deadline - time.monotonic())
            )
        except grpc.RpcError as error:
            # Only the status counts: its text may come from anywhere.
            return pack(refusal(_CODES.get(error.code(), "worker-unreachable")))
    return reply


def _listening(path: Path) -> bool:
    """Whether a process listens at a socket. gRPC's own way of finding out costs 0.2 s a message."""
    try:
        return listens(path)
    except OSError:
        return False


def answers(path: Path, timeout_s: float = 5.0) -> bool:
    """Whether a worker accepts connections at a socket. Raises SiteStateError for a path that is too long."""
    target = address(path)
    if not _listening(path):
        return False
    with grpc.insecure_channel(target, options()) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            return False
    return True
