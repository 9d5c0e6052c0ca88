"""The wire does what its weather says. `make network-test`."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
from wire import Weather, Wire, missing

pytestmark = [pytest.mark.network, pytest.mark.skipif(bool(missing()), reason=missing())]

BYTES = 300_000
#: At the other end: seconds to connect, and until all bytes were counted at this one.
SEND = """
import socket, sys, time
began = time.monotonic()
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[4])) as line:
    print(time.monotonic() - began)
    line.sendall(bytes(int(sys.argv[3])))
    line.shutdown(socket.SHUT_WR)
    assert int(line.recv(99)) == int(sys.argv[3])
print(time.monotonic() - began)
"""


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire("far") as made:
        yield made


@pytest.fixture
def port(wire: Wire) -> Iterator[int]:
    """Somebody at this end who counts what comes and says how much it was."""

    def count() -> None:
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            with line:
                line.sendall(str(sum(len(part) for part in iter(partial(line.recv, 65536), b""))).encode())

    with socket.create_server((wire.here, 0)) as server:
        threading.Thread(target=count, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def send(wire: Wire, port: int, patience_s: float = 60.0) -> tuple[float, float] | None:
    """Send from the other end; return the seconds to connect and in all, None if nobody answered."""
    inside = ["ip", "netns", "exec", wire.namespace, sys.executable, "-c", SEND]
    words = [wire.here, str(port), str(BYTES), str(patience_s)]
    done = subprocess.run([*inside, *words], capture_output=True, text=True, check=False)
    connect, *rest = [float(line) for line in done.stdout.split()] or [0.0]
    return (connect, rest[0]) if rest else None


def test_delay_is_felt_each_way(wire: Wire, port: int) -> None:
    wire.weather = Weather(delay_s=0.3)
    sent = send(wire, port)
    assert sent is not None
    assert sent[0] > 0.6


def test_a_narrow_line_takes_its_time(wire: Wire, port: int) -> None:
    wire.weather = Weather(bits_per_s=1e6)
    sent = send(wire, port)
    assert sent is not None
    assert sent[1] > 8 * BYTES / 1e6 - 0.2


def test_lost_doubled_and_early_packets_are_mended_by_the_kernel(wire: Wire, port: int) -> None:
    wire.weather = Weather(delay_s=0.02, loss=0.05, duplicate=0.05, reorder=0.25)
    assert send(wire, port) is not None
    count = wire.out.count + wire.into.count
    assert min(count["lost"], count["twice"], count["early"]) > 0


def test_through_a_cut_wire_nothing_comes_and_then_it_does(wire: Wire, port: int) -> None:
    wire.weather = Weather(cut=True)
    began = time.monotonic()
    assert send(wire, port, 3.0) is None
    assert time.monotonic() - began >= 3.0
    wire.weather = Weather()
    assert send(wire, port) is not None
