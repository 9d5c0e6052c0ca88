"""Flower's simulation engine as a child process tree of our own: started, followed and ended here.

`flwr run` alone would start a detached SuperLink on a fixed port, reuse whatever project's it finds
there, leave it running, and exit 0 when the ServerApp crashed.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common.errors import RunError
from server.app import END_WITH
from server.federation.flower_cli import FlowerCli, tool
from simulations.processes import end_group, end_those_with, free_port, listens

_START_S = 60.0


class Simulation:
    """A SuperLink in simulation mode on a free loopback port, with a home of its own.

    Use as a context manager: leaving it ends every process it started, also after an exception.
    """

    def __init__(self, *, cpus: int | None = None) -> None:
        self.cpus = cpus or os.cpu_count() or 1

    def __enter__(self) -> "Simulation":
        self._home = tempfile.TemporaryDirectory(prefix="crossprobe-flwr-")
        home = Path(self._home.name)
        self.port = free_port()
        self.cli = FlowerCli(f"127.0.0.1:{self.port}", None, home)
        self.env = {
            **self.cli.environment,
            "RAY_USAGE_STATS_ENABLED": "0",
            # What a site computes on, its worker sets: two busy processes with two threads each on two cores crawl.
            "OMP_NUM_THREADS": "1",
            # Flower's simulation process outlives its SuperLink; it is told whom it works for.
            END_WITH: str(os.getpid()),
        }
        self.cli.environment = self.env
        self.log = home / "superlink.log"
        command = [tool("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                env=self.env,
                cwd=home,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        deadline = time.monotonic() + _START_S
        while not listens(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = self.tail()
                self.__exit__()
                raise RunError(f"Flower's SuperLink did not start:\n{tail}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        end_group(self._process)
        end_those_with(f"FLWR_HOME={self.env['FLWR_HOME']}")
        self._home.cleanup()

    @property
    def pid(self) -> int:
        """The SuperLink's process id: every process of the simulation descends from it, Ray's too."""
        return self._process.pid

    def tail(self) -> str:
        """Return the end of Flower's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def run(
        self,
        study: Path,
        sites: Sequence[Path],
        out: Path,
        *,
        threads: int = 1,
        resume: bool = False,
        on_poll: Callable[[], None] = lambda: None,
    ) -> None:
        """Run a study over simulated sites to its end.

        Args:
            study: study file.
            sites: one folder a site.
            threads: of each site.
            on_poll: is called about once a second while the run goes on.

        Raises:
            RunError: with the ServerApp's own message if the run failed.
        """
        config: dict[str, str | int | bool] = {
            "study": str(study.resolve()),
            "sites": "\n".join(str(path.resolve()) for path in sites),
            "out": str(out.resolve()),
            "threads": threads,
            "resume": resume,
        }
        share = max(1, self.cpus // max(1, len(sites)))
        federation = f"num-supernodes={len(sites)} client-resources-num-cpus={share} init-args-num-cpus={self.cpus}"

        def poll() -> None:
            on_poll()
            if self._process.poll() is not None:
                raise RunError(f"Flower's SuperLink ended during the run:\n{self.tail()}")

        self.cli.follow(self.cli.submit(config, federation=federation), out, poll, self.tail)


def _end_with_parent() -> None:
    """Ask Linux to end this process when the one that started it is killed: Flower would train on, unseen."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG
