"""A federation whose hospitals are network namespaces, each at the end of a wire to the coordinator's own proxy.

The way is that of the compose file: SuperNode -- name server, wire -- nginx with deploy/proxy.conf -- SuperLink. A
SuperNode, its SuperExec and shipped code have nothing but the hospital's end of the wire, and what ends is started
again as the compose file's `restart: unless-stopped` does.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import wire
from federation import ACCEPTED, Federation
from name_server import NameServer
from tiny import content
from wire import Wire

from server.federation.provision import COORDINATOR
from simulations.processes import free_port

#: As what hospitals know the coordinator; a name of its certificate.
PROXY = "proxy"
#: Shifts the time of day of a program; `unshare --time` has only the clocks that count from the start.
_CLOCK = Path(__file__).with_name("clock.c")
#: Files that `ip netns exec` puts over /etc's in a namespace.
_OWN_FILES = Path("/etc/netns")
#: How long a service stays ended.
_DOWN_S = 1.0


def five_rounds() -> list[dict[str, Any]]:
    """The stages of a tiny study for a federation that much befalls: one round of pretraining, four of refinement."""
    return [
        stage | {"rounds": 4 if stage["name"] == "refine" else 1}
        for stage in content()["stages"]
        if stage["name"] in ("pretrain", "refine")
    ]


def missing() -> str:
    """Return what there is not for a federation over wires to run here, or an empty text."""
    lacking = wire.missing()
    if not lacking and shutil.which("nginx") is None:
        return "nginx is not installed (Debian: nginx-light)"
    return lacking


class NetworkedFederation(Federation):
    """A federation over wires; in a `with`.

    Args:
        clocks: site -> whole seconds by which its SuperNode's clock is ahead, by which it signs.

    Attributes:
        wires: site -> its wire.
        names_of: site -> its name server.
        restarts: service -> how often its restart policy started it again.
    """

    def __init__(
        self,
        root: Path,
        study: Path,
        sites: Sequence[Path],
        *,
        seed: int = 0,
        clocks: Mapping[str, int] | None = None,
    ) -> None:
        self.proxy_port = free_port()
        super().__init__(root, study, sites, superlink_seen_by_sites=f"{PROXY}:{self.proxy_port}")
        self.clocks, self.seed = dict(clocks or {}), seed
        self.wires: dict[str, Wire] = {}
        self.name_servers: dict[str, NameServer] = {}
        self.restarts: Counter[str] = Counter()
        self._ended_at: dict[str, float] = {}
        self._made = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for number, name in enumerate(self.names):
                self.wires[name] = stack.enter_context(Wire(name, 100 * self.seed + number))
                self.name_servers[name] = stack.enter_context(NameServer(PROXY, self.wires[name].here))
                files = _OWN_FILES / self.wires[name].namespace
                files.mkdir(parents=True)
                stack.callback(shutil.rmtree, files)
                (files / "resolv.conf").write_text(f"nameserver {self.wires[name].here}\n")
            self._made = stack.pop_all()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            self._made.close()

    def surroundings(self, kit: str, service: str) -> list[str]:
        around = super().surroundings(kit, service)
        if kit in self.wires and service in ("supernode", "superexec"):
            around = ["ip", "netns", "exec", self.wires[kit].namespace]
        if service == "supernode" and self.clocks.get(kit):
            around += ["env", f"LD_PRELOAD={self._clock()}", f"CLOCK_AHEAD={self.clocks[kit]}"]
        return around

    def _clock(self) -> Path:
        """Return the library of `clock.c`."""
        library = self.root / "clock.so"
        if not library.exists():
            subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, _CLOCK, "-ldl"], check=True)
        return library

    def start_coordinator(self) -> None:
        super().start_coordinator()
        self.start_proxy()

    def start_proxy(self) -> None:
        """Start nginx with the product's configuration, where only its paths, names and ports are this machine's."""
        home = self.root / f"{COORDINATOR}-proxy"
        home.mkdir(exist_ok=True)
        text = Path(self.coordinator / "proxy.conf").read_text()
        places = "".join(f"listen {each.here}:{self.proxy_port} ssl;\n    " for each in self.wires.values())
        for here, there in (
            ("/tmp/", f"{home}/"),
            ("/etc/crossprobe/", f"{self.coordinator}/"),
            ("listen 9443 ssl;", places.strip()),
            ("https://superlink:8443", f"https://{self.address}"),
        ):
            assert here in text
            text = text.replace(here, there)
        (home / "proxy.conf").write_text(text)
        with open(self.log(COORDINATOR, "proxy"), "ab") as log:
            command = ["nginx", "-p", str(home), "-c", str(home / "proxy.conf"), "-g", "daemon off; user root;"]
            self.processes[f"{COORDINATOR}-proxy"] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def start_sites(self, *names: str) -> None:
        """Start the three processes of each site at once; a SuperNode may take its time to get through."""
        for name in names or self.names:
            for service in ("worker", "supernode", "superexec"):
                self.start(name, service)
        for name in names or self.names:
            self.wait(self.sockets[name].exists, f"{name}'s worker", 120)

    def accepted(self, name: str) -> int:
        """Return how often the SuperLink took a site's SuperNode."""
        return self.log(name, "supernode").read_text().count(ACCEPTED)

    def wait(self, true: Callable[[], object], what: str, patience_s: float) -> None:
        """Wait until something is true, and start again what ends meanwhile."""
        deadline = time.monotonic() + patience_s
        while not true():
            assert time.monotonic() < deadline, f"not within {patience_s:.0f} s: {what}\n{self.logs()}"
            self.tend()
            time.sleep(0.2)

    def tend(self) -> None:
        """Start again what ended a second ago."""
        for key, process in list(self.processes.items()):
            if process.poll() is None:
                self._ended_at.pop(key, None)
            elif time.monotonic() - self._ended_at.setdefault(key, time.monotonic()) > _DOWN_S:
                kit, _, service = key.rpartition("-")
                self.restarts[key] += 1
                del self._ended_at[key]
                self.start_proxy() if service == "proxy" else self.start(kit, service)

    def kill(self, key: str) -> None:
        """Kill a service, unless it has just ended by itself, and leave the rest to its restart policy."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[key].pid, signal.SIGKILL)

    def ended(self, running: subprocess.Popen[bytes], patience_s: float) -> int:
        """Wait for the end of `study run` and return its exit code."""
        self.wait(lambda: running.poll() is not None, f"the run's end; it said\n{self.said.read_text()}", patience_s)
        return running.returncode
