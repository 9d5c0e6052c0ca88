"""One study on several systems, each in processes of its own: seconds until its first round, its rounds, its memory."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from common.errors import RunError
from server import history
from simulations.benchmarks.memory import watched
from simulations.benchmarks.plain_flower import Work
from simulations.flower import Simulation
from simulations.processes import end_group

ROOT = Path(__file__).resolve().parents[2]
#: What a command holds -> what the process does.
ROLES = {
    "ray::ClientAppActor": "site",
    "flwr-simulation": "server",
    "simulations.benchmarks.": "server",
    "nvflare_job": "server",
}
LONGEST_S = 1200.0


@dataclass(frozen=True)
class Ran:
    """What a system did.

    Attributes:
        start_s: from the command to the beginning of its first round.
        rounds_s: of each round.
        server_mb, site_mb: the most that the process with the server, and one with sites, held.
        all_mb: the most that all processes held together; memory that two of them share counts twice.
    """

    system: str
    start_s: float
    rounds_s: list[float]
    server_mb: float
    site_mb: float
    all_mb: float

    @property
    def later_s(self) -> float:
        """The median of all rounds but the first."""
        later = sorted(self.rounds_s[1:] or self.rounds_s)
        return later[len(later) // 2]


def crossprobe(study: Path, sites: Sequence[Path], out: Path, rounds: int) -> Ran:
    """Run a study as `crossprobe simulate` does; of its rounds the first `rounds` are told."""
    began = time.time()
    with Simulation() as simulation, watched(simulation.pid, ROLES) as most:
        simulation.run(study, sites, out)
    return _of_history("CrossProbe, simulation", out, rounds, began, most)


def one_process(study: Path, sites: Sequence[Path], out: Path, rounds: int) -> Ran:
    """Run a study in one process, without Flower."""
    began = time.time()
    command = ["-m", "simulations.benchmarks.one_process", str(study), str(out), *map(str, sites)]
    with _child([sys.executable, *command]) as process, watched(process.pid, ROLES) as most:
        _answer(process)
    return _of_history("CrossProbe, one process", out, rounds, began, most)


def plain_flower(study: Path, sites: Sequence[Path], rounds: int) -> Ran:
    """Run the study's first stage on plain Flower."""
    work = Work(str(study), [str(site) for site in sites], rounds, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="crossprobe-plain-") as folder:
        file = Path(folder) / "work.json"
        file.write_text(json.dumps(asdict(work)))
        began = time.time()
        command = [sys.executable, "-m", "simulations.benchmarks.plain_flower", str(file)]
        with _child(command) as process, watched(process.pid, ROLES) as most:
            times = _answer(process)
    return _of_times("plain Flower, FedAvg", times, began, most)


def nvflare(python: Path, packages: Path, study: Path, sites: Sequence[Path], rounds: int) -> Ran:
    """Run the study's first stage on NVFLARE's simulator.

    Args:
        python: interpreter of an environment that has it.
        packages: where torch is.
    """
    with tempfile.TemporaryDirectory(prefix="crossprobe-nvflare-") as folder:
        script = ROOT / "simulations" / "benchmarks" / "nvflare_job.py"
        began = time.time()
        command = [str(python), str(script), str(study), folder, str(rounds), str(packages), *map(str, sites)]
        with _child(command) as process, watched(process.pid, ROLES) as most:
            times = _answer(process)
    return _of_times("NVFLARE, FedAvg, simulator", times, began, most)


@contextmanager
def _child(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a system in a session of its own, and end all of it with the block."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            end_group(process)


def _answer(process: subprocess.Popen[str]) -> dict[str, list[float]]:
    """Wait for a system's end and return its last line. Raises RunError."""
    out, errors = process.communicate(timeout=LONGEST_S)
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        raise RunError(f"a system failed:\n{errors[-2000:]}")
    found: dict[str, list[float]] = json.loads(lines[-1])
    return found


def _of_history(system: str, run: Path, rounds: int, began: float, most: dict[str, float]) -> Ran:
    records = [record for record in history.read(run) if record.counted][:rounds]
    away = sorted({name for record in records for name, site in record.sites.items() if site.status != "ok"})
    if away:
        raise RunError(f"{len(away)} sites of {len(records[0].sites)} did not do their part, {away[0]} among them.")
    first = datetime.fromisoformat(records[0].started).timestamp()
    return _ran(system, first - began, [record.seconds for record in records], most)


def _of_times(system: str, times: dict[str, list[float]], began: float, most: dict[str, float]) -> Ran:
    # a round lasts until the next one begins: whatever a system does between two rounds is its own
    ends = [*times["began"][1:], times["ended"][-1]]
    rounds = [end - start for start, end in zip(times["began"], ends, strict=True)]
    return _ran(system, times["began"][0] - began, rounds, most)


def _ran(system: str, start: float, rounds: list[float], most: dict[str, float]) -> Ran:
    memory = (most.get(name, 0.0) for name in ("server", "site", "all"))
    return Ran(system, round(start, 1), [round(seconds, 2) for seconds in rounds], *memory)
