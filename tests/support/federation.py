"""A real federation for tests: the compose file's own commands as processes on loopback.

Each service's command, environment and mounts come from the kits' compose.yaml; only the containers' paths,
names and ports are replaced by this machine's. Every process leads a group of its own and is ended by its id.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tiny import Between, Change, workers

from clients.data.site import load_site
from clients.governance.approval import approve
from clients.governance.ledger import read as read_ledger
from clients.governance.state import State
from clients.node.keys import make_node_keys
from clients.node.refusals import refusal
from clients.node.simulated import simulated_secret
from common.messages import TaskRequest, pack, unpack
from common.run_folder import RunFolder
from common.study import load_study
from server import history
from server.federation.flower_cli import flower_environment, tool
from server.federation.provision import KitSite, provision
from server.history import RoundRecord
from server.run import run_study

READY_S = 60.0
#: What a SuperNode says once the SuperLink took it.
ACCEPTED = "SuperNode ID:"
#: Whether a process can be put into a network namespace of its own here.
NAMESPACES = (
    shutil.which("unshare") is not None
    and shutil.which("nsenter") is not None
    and subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_until(true: Callable[[], object], what: str, patience_s: float = READY_S) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, f"not within {patience_s:.0f} s: {what}"
        time.sleep(0.2)


@dataclass
class Federation:
    """Coordinator and hospitals under `root`, made by `crossprobe provision` and the sites' own commands.

    Args:
        root: an empty folder.
        study: study file.
        sites: one folder a site; a site is named after it.
        simulated: give the sites the secrets that a simulation gives them.
        superlink_seen_by_sites: host:port where SuperNodes connect; default: the SuperLink itself.
    """

    root: Path
    study: Path
    sites: Sequence[Path]
    simulated: bool = True
    superlink_seen_by_sites: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        study = load_study(self.study)
        self.names = [folder.name for folder in self.sites]
        self.data = dict(zip(self.names, self.sites, strict=True))
        planned = [KitSite(name, load_site(self.data[name]).config.role) for name in self.names]
        self.kits = self.root / "kits"
        provision(study, self.study, self.kits, planned, host="127.0.0.1", port=9443)
        self.ports["superlink"] = free_port()
        self.ports |= {name: free_port() for name in self.names}
        # Unix sockets have short names; pytest's folders do not.
        self.socket_folder = tempfile.TemporaryDirectory(prefix="crossprobe-")
        self.sockets = {name: Path(self.socket_folder.name) / f"{name}.sock" for name in self.names}
        for name in self.names:
            make_node_keys(self.kits / name / "node")
            site = load_site(self.data[name])
            secret = simulated_secret(study, name) if self.simulated else None
            approve(State.create(self.kits / name / "state", secret), site, study, by="anna")

    def __enter__(self) -> "Federation":
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
        return self.kits / "coordinator"

    @property
    def run_folder(self) -> Path:
        return self.coordinator / "runs" / "first"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['superlink']}"

    def start_coordinator(self) -> None:
        self.start("coordinator", "superlink")
        wait_until(lambda: listens(self.ports["superlink"]), "the SuperLink listens")
        self.start("coordinator", "serverapp")

    def register(self, *names: str) -> None:
        for name in names or self.names:
            done = self.console("study", "register", name, str(self.kits / name / "node" / "node.pub"))
            assert done.returncode == 0, done.stderr

    def start_sites(self, *names: str) -> None:
        for name in names or self.names:
            self.start(name, "worker")
            self.start(name, "supernode")
        for name in names or self.names:
            wait_until(partial(listens, self.ports[name]), f"{name}'s SuperNode listens")
            wait_until(self.sockets[name].exists, f"{name}'s worker listens")
            self.start(name, "superexec")

    def come_back(self, name: str, patience_s: float = 180.0) -> None:
        """Start a site's SuperNode again and again, as its restart policy would, until the SuperLink takes it."""
        log, deadline = self.log(name, "supernode"), time.monotonic() + patience_s
        accepted = log.read_text().count(ACCEPTED)
        while time.monotonic() < deadline:
            process = self.start(name, "supernode")
            wait_until(
                lambda p=process: p.poll() is not None or log.read_text().count(ACCEPTED) > accepted, "an answer"
            )
            if process.poll() is None:
                return
            time.sleep(2)
        raise AssertionError(f"{name}'s SuperNode was not accepted within {patience_s:.0f} s")

    def apps(self, key: str, program: str) -> list[int]:
        """Return the ids of the processes that a service started for a Flower app."""
        group, found = self.processes[key].pid, []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and program.encode() in (entry / "cmdline").read_bytes():
                    found += [int(entry.name)] if os.getsid(int(entry.name)) == group else []
        return found

    def at_the_worker(self, *names: str) -> None:
        """Wait until a task is on its way to the workers of sites, which were stopped so that it waits there."""
        for name in names:
            wait_until(lambda name=name: self.apps(f"{name}-superexec", "flwr-clientapp"), f"{name}'s task arrives")
        time.sleep(5)  # a ClientApp's process starts and hands its task to the socket

    def stop_worker(self, name: str) -> None:
        os.killpg(self.processes[f"{name}-worker"].pid, signal.SIGSTOP)

    def continue_worker(self, name: str) -> None:
        os.killpg(self.processes[f"{name}-worker"].pid, signal.SIGCONT)

    def start(self, kit: str, service: str, changes: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a service as its compose file says; `changes` replaces texts of its command."""
        key = f"{kit}-{service}"
        content = self._service(kit, service)
        command = [self._local(kit, content, part) for part in content["command"]]
        for old, new in (changes or {}).items():
            command = [part.replace(old, new) for part in command]
        command[0] = tool(command[0])
        if Path(command[0]).name == "crossprobe":
            command[:1] = [sys.executable, "-m", "crossprobe"]
        if content.get("network_mode") == "none" and NAMESPACES:
            command[:0] = ["unshare", "-n"]
        home = self.root / key
        home.mkdir(exist_ok=True)
        environment = flower_environment(home) | {
            name: self._local(kit, content, str(value))
            for name, value in content["environment"].items()
            if name not in ("HOME", "FLWR_HOME")
        }
        # A worker's command is this checkout's; the SuperExec's ClientApp finds the code in the bundle alone.
        where = Path(__file__).resolve().parents[2] if service == "worker" else home
        with open(self.log(kit, service), "ab") as log:
            self.processes[key] = subprocess.Popen(
                command, env=environment, cwd=where, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self.processes[key]

    def end(self, key: str, sig: int) -> None:
        """Send a signal to a service's group; what does not end within 15 s is killed."""
        process = self.processes.pop(key)
        for each, patience in ((sig, 15.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, each)
            deadline = time.monotonic() + patience
            while _alive(process) and time.monotonic() < deadline:
                time.sleep(0.1)
            if not _alive(process):
                return

    def log(self, kit: str, service: str) -> Path:
        return self.root / f"{kit}-{service}.log"

    def console(self, *arguments: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
        """Run a command of the coordinator as its console service would."""
        return subprocess.run(
            [sys.executable, "-m", "crossprobe", *arguments],
            env=self.console_environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def console_environment(self) -> dict[str, str]:
        return os.environ | {
            "CROSSPROBE_ADDRESS": self.address,
            "CROSSPROBE_CA": str(self.coordinator / "ca.crt"),
        }

    def run_command(self, *more: str) -> list[str]:
        study = str(self.coordinator / "study" / "study.yaml")
        return ["study", "run", study, "--out", str(self.run_folder), *more]

    def run(self, *more: str) -> subprocess.CompletedProcess[str]:
        return self.console(*self.run_command(*more))

    @contextlib.contextmanager
    def running(self, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run the study in the background; what it says goes to `said`."""
        command = [sys.executable, "-m", "crossprobe", *self.run_command(*more)]
        with open(self.said, "wb") as log:
            process = subprocess.Popen(command, env=self.console_environment(), stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @property
    def said(self) -> Path:
        return self.root / "run.log"

    def records(self) -> list[RoundRecord]:
        return history.read(self.run_folder)

    def undisturbed(self, out: Path) -> bytes:
        """Return the model of an undisturbed run in one process, with the participation of this one."""
        study = load_study(self.study)
        missing = {
            (record.round, name)
            for record in self.records()
            if record.counted
            for name, site in record.sites.items()
            if site.status != "ok"
        }

        def absent(name: str, request: bytes, reply: bytes) -> bytes:
            header, _ = unpack(request)
            assert isinstance(header, TaskRequest)
            return pack(refusal("worker-unreachable")) if (header.round, name) in missing else reply

        change: dict[str, Change] = {name: partial(absent, name) for name in self.names}
        run_study(study, Between(workers(study, self.sites), change), out)
        return RunFolder(out).model.read_bytes()

    def ledger(self, name: str) -> list[dict[str, Any]]:
        return read_ledger(self.kits / name / "state" / "ledger.jsonl")

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.root.glob("*.log")))

    def _service(self, kit: str, service: str) -> dict[str, Any]:
        content = yaml.safe_load((self.kits / kit / "compose.yaml").read_text())["services"][service]
        assert isinstance(content, dict)
        return content

    def _local(self, kit: str, content: Mapping[str, Any], text: str) -> str:
        """Return a text of the compose file with this machine's paths, names and ports."""
        for volume in content["volumes"]:
            inside = re.search(r":(/[^:]+)(:ro)?$", volume)
            here = self._mounted(kit, volume)
            if inside and here:
                text = re.sub(rf"{re.escape(inside.group(1))}(?![\w.])", here, text)
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


def _alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
