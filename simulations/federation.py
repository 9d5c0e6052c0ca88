"""A real federation on one machine: the compose file's own commands as processes on loopback.

Each service's command, environment and mounts come from the kits' compose.yaml; only the containers' paths, names and
ports are replaced by this machine's. Every process leads a group of its own and is ended by its id. It separates
nothing, since all runs as one user: for phantoms only.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import yaml

from clients.data.site import load_site
from clients.governance.approval import approve
from clients.governance.state import State
from clients.node.keys import make_node_keys
from common.errors import RunError
from common.signing import PUBLIC_KEY, read_public_key, text_of
from common.study import load_study
from server.federation.flower_cli import FlowerCli, flower_environment, tool
from server.federation.provision import COORDINATOR, SIGNING, KitSite, provision
from simulations.processes import end_group, free_port, listens

ROOT = Path(__file__).resolve().parents[1]
READY_S = 60.0
#: How a person, a service manager or a closed terminal ends a command.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@functools.cache
def namespaces() -> bool:
    """Whether a process can be put into a network namespace of its own here."""
    return (
        shutil.which("unshare") is not None
        and shutil.which("nsenter") is not None
        and subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
    )


@contextlib.contextmanager
def one_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block on the first of Ctrl-C, SIGTERM and a terminal that closes.

    Those after it are ignored, so that an impatient second one does not break off the cleaning up.
    """

    minded = [sort for sort in INTERRUPTS if signal.getsignal(sort) is not signal.SIG_IGN]  # nohup ignores SIGHUP

    def interrupt(*_: object) -> None:
        for sort in minded:
            signal.signal(sort, lambda *_: None)  # SIG_IGN would make Python complain about one that is on its way
        raise KeyboardInterrupt

    before = {sort: signal.signal(sort, interrupt) for sort in minded}
    try:
        yield
    finally:
        for sort, handler in before.items():
            signal.signal(sort, handler)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let an interrupt wait until the block is done, and then act as it would have."""
    waiting: list[int] = []
    before = {sort: signal.signal(sort, lambda number, _: waiting.append(number)) for sort in INTERRUPTS}
    try:
        yield
    finally:
        for sort, handler in before.items():
            signal.signal(sort, handler)
        if waiting:
            signal.raise_signal(waiting[0])


class LocalFederation:
    """Coordinator and hospitals under `root`, made by what the commands of either are made of.

    On leaving the block all processes are ended, whatever happened.

    Args:
        root: an empty folder.
        study: study file.
        sites: one folder a site; a site is named after it.
        secrets: site -> its secret, where it is not to be random.
        superlink_seen_by_sites: host:port where SuperNodes connect; default: the SuperLink itself.
    """

    def __init__(
        self,
        root: Path,
        study: Path,
        sites: Sequence[Path],
        *,
        secrets: Mapping[str, bytes] | None = None,
        superlink_seen_by_sites: str = "",
    ) -> None:
        self.study, self.superlink_seen_by_sites = study, superlink_seen_by_sites
        self.root, self.sites = root.resolve(), [folder.resolve() for folder in sites]  # each process has a home
        self.data = {folder.name: folder for folder in self.sites}
        self.names = list(self.data)
        self.kits = self.root / "kits"
        self.ports = {name: free_port() for name in ("superlink", *self.names)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        checked, loaded = load_study(study), {name: load_site(folder) for name, folder in self.data.items()}
        planned = [KitSite(name, site.config.role) for name, site in loaded.items()]
        provision(checked, study, self.kits, planned, host="127.0.0.1", port=9443)
        # Unix sockets have short names; the folders of a run may not.
        self.socket_folder = tempfile.TemporaryDirectory(prefix="crossprobe-")
        self.sockets = {name: Path(self.socket_folder.name) / f"{name}.sock" for name in self.names}
        states = {name: State.create(self.kits / name / "state", (secrets or {}).get(name)) for name in self.names}
        known = {name: text_of(state.signing_key().public_key()) for name, state in states.items()}
        for name, site in loaded.items():
            make_node_keys(self.kits / name / "node")
            coordinator = text_of(read_public_key(self.kits / name / "study" / PUBLIC_KEY))
            approve(states[name], site, checked, by="rehearsal", coordinator=coordinator, sites=known)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():  # all at once, then wait for each
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for name in reversed(list(self.processes)):
            self.end(name, signal.SIGTERM)
        self.socket_folder.cleanup()

    @property
    def coordinator(self) -> Path:
        """The coordinator's kit."""
        return self.kits / COORDINATOR

    @property
    def signing_keys(self) -> Path:
        """The folder of the coordinator's signing keys."""
        return self.coordinator / SIGNING

    @property
    def run_folder(self) -> Path:
        """The folder that the ServerApp writes."""
        return self.coordinator / "runs" / "first"

    @property
    def address(self) -> str:
        """Host and port of the SuperLink."""
        return f"127.0.0.1:{self.ports['superlink']}"

    def cli(self) -> FlowerCli:
        """Return the coordinator's way to the SuperLink."""
        return FlowerCli(self.address, self.coordinator / "ca.crt")

    def start_coordinator(self) -> None:
        """Start the SuperLink and the SuperExec beside it. Raises RunError."""
        self.start(COORDINATOR, "superlink")
        self._wait_for(f"{COORDINATOR}-superlink", lambda: listens(self.ports["superlink"]))
        self.start(COORDINATOR, "serverapp")

    def start_sites(self, *names: str) -> None:
        """Start the three processes of each site, or of the sites named. Raises RunError."""
        for name in names or self.names:
            self.start(name, "worker")
            self.start(name, "supernode")
        for name in names or self.names:
            self._wait_for(f"{name}-supernode", partial(listens, self.ports[name]))
            self._wait_for(f"{name}-worker", self.sockets[name].exists)
            self.start(name, "superexec")

    def start(self, kit: str, service: str, changes: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a service as its compose file says; `changes` replaces texts of its command."""
        key = f"{kit}-{service}"
        content = self._service(kit, service)
        command = [self._local(kit, content, part) for part in content["command"]]
        for old, new in (changes or {}).items():
            command = [part.replace(old, new) for part in command]
        own = {"crossprobe": [sys.executable, "-m", "crossprobe"], "python": [sys.executable]}
        command[:1] = own.get(command[0]) or [tool(command[0])]
        command[:0] = self.surroundings(kit, service)
        home = self.root / key
        home.mkdir(exist_ok=True)
        environment = flower_environment(home) | {
            name: self._local(kit, content, str(value))
            for name, value in content["environment"].items()
            if name not in ("HOME", "FLWR_HOME")
        }
        # A worker's command is this checkout's; the SuperExec's ClientApp finds the code in the bundle alone.
        where = ROOT if service == "worker" else home
        with open(self.log(kit, service), "ab") as log, held():  # a process that is not noted would never be ended
            self.processes[key] = subprocess.Popen(
                command, env=environment, cwd=where, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self.processes[key]

    def surroundings(self, kit: str, service: str) -> list[str]:
        """Return the command that puts a service where it belongs: one without network into a namespace of its own."""
        alone = self._service(kit, service).get("network_mode") == "none" and namespaces()
        return ["unshare", "-n"] if alone else []

    def end(self, key: str, sig: int) -> None:
        """Send a signal to a service's group; what does not end within 15 s is killed."""
        end_group(self.processes.pop(key), ((sig, 15.0), (signal.SIGKILL, 5.0)))

    def log(self, kit: str, service: str) -> Path:
        """The file that a service's output goes to."""
        return self.root / f"{kit}-{service}.log"

    def _wait_for(self, key: str, ready: Callable[[], object]) -> None:
        """Wait until a service answers; one that ended says why in its log. Raises RunError."""
        process, log = self.processes[key], self.root / f"{key}.log"
        deadline = time.monotonic() + READY_S
        while not ready():
            ended = process.poll() is not None
            if ended or time.monotonic() > deadline:
                what = f"ended with code {process.returncode}" if ended else f"does not answer within {READY_S:.0f} s"
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
                raise RunError("\n  ".join([f"{key} {what}. The end of {log}:", *lines]))
            time.sleep(0.2)

    def _service(self, kit: str, service: str) -> dict[str, Any]:
        services = yaml.safe_load((self.kits / kit / "compose.yaml").read_text(encoding="utf-8"))["services"]
        content: dict[str, Any] = services[service]
        return content

    def _local(self, kit: str, content: Mapping[str, Any], text: str) -> str:
        """Return a text of the compose file with this machine's paths, names and ports."""
        mounted = {"/app/deploy": str(ROOT / "deploy")}
        for volume in content["volumes"]:
            inside = re.search(r":(/[^:]+?)(:ro)?$", volume)
            here = self._mounted(kit, volume)
            if inside and here:
                mounted[inside.group(1)] = here
        # in one pass: a path of this machine may hold what is the name of a mount
        names = "|".join(re.escape(name) for name in mounted)
        text = re.sub(rf"({names})(?![\w.])", lambda found: mounted[found.group()], text)
        superlink, own = self.ports["superlink"], self.ports.get(kit, 0)
        places = {
            "${COORDINATOR_ADDRESS:-proxy:9443}": self.superlink_seen_by_sites or self.address,
            "/run/crossprobe/worker.sock": str(self.sockets.get(kit, "")),
            "0.0.0.0": "127.0.0.1",
            "--port=9094": f"--port={own}",
            "=supernode:9094": f"=localhost:{own}",
            "--port=8443": f"--port={superlink}",
            "=superlink:8443": f"=localhost:{superlink}",
            "127.0.0.1:9095": f"127.0.0.1:{free_port()}",
            "${CROSSPROBE_THREADS:-1}": "1",
        }
        for there, here in places.items():
            text = text.replace(there, here)
        return text

    def _mounted(self, kit: str, volume: str) -> str:
        """Return the folder or file behind a mount, or nothing for the socket's volume."""
        if "_DATA" in volume:
            return str(self.data[kit])
        found = re.match(r"\$\{\w+_KIT:-[^}]*\}/([^:]+):", volume)
        return str(self.kits / kit / found.group(1)) if found else ""
