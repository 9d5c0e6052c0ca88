"""A wire between this network namespace and another, which delays, loses, doubles, reorders and throttles packets.

What `tc netem` does, for kernels that were built without it: the wire's two ends are TUN devices, and all that either
kernel sends into its own is carried here, packet by packet, so that both sides' TCP meets what it would on a real line.
Needs root, `ip` and /dev/net/tun.
"""

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_network
from types import TracebackType
from typing import Self

#: linux/if_tun.h: name a TUN device, whose packets come without a header of its own.
_TUNSETIFF, _TUN_WITHOUT_HEADER = 0x400454CA, 0x0001 | 0x1000
#: What waits for a throttled wire beyond this is dropped, as by a router with a full buffer, in seconds of sending.
BUFFER_S = 1.0
#: No packet is longer.
_MTU = 1500
#: For testing between networks (RFC 2544); each wire has four of its addresses.
_NETWORK = ip_network("198.18.0.0/15")
_number = itertools.count(os.getpid() * 16)


def missing() -> str:
    """Return what there is not for a wire to be made here, or an empty text."""
    if os.getuid():
        return "only root can make a network namespace"
    if shutil.which("ip") is None:
        return "`ip` is not installed (Debian: iproute2)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun"
    return ""


@dataclass(frozen=True)
class Weather:
    """What a wire does to packets, each way; the words are those of `tc netem`.

    Attributes:
        delay_s: how long each is on its way.
        loss, duplicate: share of packets that is lost, or arrives twice.
        reorder: share that is not delayed, and so overtakes the others.
        bits_per_s: of all together; 0: no limit.
        cut: nothing arrives.
    """

    delay_s: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    bits_per_s: float = 0.0
    cut: bool = False


class _Way:
    """One direction: packets read from one end and, when they are due, written to the other.

    Attributes:
        count: packets read and what became of them; `bytes` of what arrived.
    """

    def __init__(self, source: int, sink: int, seed: int) -> None:
        self.source, self.sink, self.dice = source, sink, random.Random(seed)
        self.under_way: list[tuple[float, int, bytes]] = []
        self.sent_at, self.order, self.count = 0.0, itertools.count(), Counter[str]()

    def take(self, weather: Weather) -> None:
        """Read all that there is, and decide on each packet."""
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = os.read(self.source, _MTU)
                self.count["packets"] += 1
                self._decide(packet, weather)

    def _decide(self, packet: bytes, weather: Weather) -> None:
        now = time.monotonic()
        if weather.cut:
            self.count["cut"] += 1
            return
        if self.dice.random() < weather.loss:
            self.count["lost"] += 1
            return
        self.sent_at = max(now, self.sent_at)
        if weather.bits_per_s:
            if self.sent_at - now > BUFFER_S:
                self.count["dropped"] += 1
                return
            self.sent_at += len(packet) * 8 / weather.bits_per_s
        early = self.dice.random() < weather.reorder
        self.count["early"] += early
        due = self.sent_at + (0.0 if early else weather.delay_s)
        twice = self.dice.random() < weather.duplicate
        self.count["twice"] += twice
        for _ in range(1 + twice):
            heapq.heappush(self.under_way, (due, next(self.order), packet))

    def give(self, weather: Weather) -> None:
        """Write all that is due; a cut wire also loses what is under way in it."""
        if weather.cut:
            self.count["cut"] += len(self.under_way)
            self.under_way.clear()
        while self.under_way and self.under_way[0][0] <= time.monotonic():
            packet = heapq.heappop(self.under_way)[2]
            with contextlib.suppress(OSError):  # the other end is down
                self.count["bytes"] += os.write(self.sink, packet)

    def next_s(self) -> float:
        """Return in how many seconds the next packet is due, at most one."""
        return max(0.0, min(1.0, self.under_way[0][0] - time.monotonic())) if self.under_way else 1.0


class Wire:
    """A network namespace and the one wire out of it, to this namespace; in a `with`, then all of it is removed.

    Args:
        name: of the other end, a few letters; its namespace is called after it.
        seed: of which packets are lost, doubled or early; the same packets only if the same are sent.
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        number = next(_number) % (_NETWORK.num_addresses // 4)
        self.here, self.there = (str(_NETWORK[4 * number + side]) for side in (1, 2))
        self.namespace = f"crossprobe-{os.getpid()}-{name}"
        self.weather = Weather()
        self._devices = f"cph{number}", f"cps{number}"
        self._stop = threading.Event()
        _run("ip", "netns", "add", self.namespace)
        try:
            self._ends = [_tun(device) for device in self._devices]
            self._connect()
        except BaseException:
            _run("ip", "netns", "delete", self.namespace)
            raise
        self.out, self.into = _Way(*reversed(self._ends), seed=2 * seed), _Way(*self._ends, seed=2 * seed + 1)
        self._thread = threading.Thread(target=self._carry, name=self.namespace, daemon=True)
        self._thread.start()

    def _connect(self) -> None:
        here, there = self._devices
        _run("ip", "addr", "add", f"{self.here}/30", "dev", here)
        _run("ip", "link", "set", here, "up")
        _run("ip", "link", "set", there, "netns", self.namespace)
        for command in (
            f"addr add {self.there}/30 dev {there}",
            f"link set {there} up",
            "link set lo up",
            f"route add default via {self.here}",
        ):
            _run("ip", "-n", self.namespace, *command.split())

    def _carry(self) -> None:
        ways = self.out, self.into
        poll = select.poll()
        for end in self._ends:
            poll.register(end, select.POLLIN)
        while not self._stop.is_set():
            poll.poll(1000 * min(way.next_s() for way in ways))
            for way in ways:
                way.take(self.weather)
                way.give(self.weather)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        for end in self._ends:  # with it goes the device
            os.close(end)
        _run("ip", "netns", "delete", self.namespace)


def _tun(device: str) -> int:
    """Return the open end of a new TUN device."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", device.encode(), _TUN_WITHOUT_HEADER))
    return end


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
