"""The local federation of `crossprobe rehearse`, with all that a test does to one."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from processes import wait_until
from tiny import Between, Change, workers

from clients.governance.ledger import read as read_ledger
from clients.node.refusals import refusal
from common.messages import TaskRequest, pack, unpack
from common.options import KEYS_VARIABLE
from common.run_folder import RunFolder
from common.simulated import simulated_secret
from common.study import load_study
from server import history
from server.history import RoundRecord
from server.run import run_study
from simulations.federation import LocalFederation, namespaces

#: What a SuperNode says once the SuperLink took it.
ACCEPTED = "SuperNode ID:"
NAMESPACES = namespaces()


class Federation(LocalFederation):
    """A local federation whose sites have the secrets of a simulation, and which tests stop, kill and look into."""

    def __init__(self, root: Path, study: Path, sites: Sequence[Path], *, superlink_seen_by_sites: str = "") -> None:
        secrets = {folder.name: simulated_secret(load_study(study), folder.name) for folder in sites}
        super().__init__(root, study, sites, secrets=secrets, superlink_seen_by_sites=superlink_seen_by_sites)

    def register(self, *names: str) -> None:
        for name in names or self.names:
            done = self.console("study", "register", name, *self.public_keys(name))
            assert done.returncode == 0, done.stderr

    def public_keys(self, name: str) -> tuple[str, str]:
        """What a site sends to be registered."""
        return str(self.kits / name / "node" / "node.pub"), str(self.kits / name / "state" / "signing.pub")

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
            KEYS_VARIABLE: str(self.signing_keys),
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
        return list(read_ledger(self.kits / name / "state" / "ledger.jsonl"))

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.root.glob("*.log")))
