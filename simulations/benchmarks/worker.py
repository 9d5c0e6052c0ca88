"""What a long-lived worker saves: a message through it against a plain process for each message.

Flower starts a Python process for every message. `worker`: that process is the thin ClientApp, which
passes the message on to the socket of `crossprobe worker`. `plain`: that process imports torch and
opens the site's data itself. Both are measured in one run, taking turns, on one thread each.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.errors import RunError
from common.messages import EnrolRequest, Refusal, TaskRequest, pack, unpack
from common.options import Json, only
from common.study import Study, load_study

ROOT = Path(__file__).resolve().parents[2]
#: Enough for steps of 8 patients that differ, and few enough to be simulated in half a minute.
PATIENTS = {"source": {"train": 16, "calibrate": 5, "val": 5, "test": 5}}

#: The body of a thin and of a plain process. Both import Flower, as each message's process does.
THIN = """
import sys, clients.app
from pathlib import Path
from clients.node.channel import ask
sys.stdout.buffer.write(ask(Path(sys.argv[1]), sys.stdin.buffer.read(), 600.0))
"""
PLAIN = """
import sys, clients.app
from clients.node.simulated import cached_worker
sys.stdout.buffer.write(cached_worker(sys.argv[1], sys.argv[2]).handle(sys.stdin.buffer.read()))
"""


def main(
    study: Annotated[Path, typer.Option(metavar="STUDY", help="study file (YAML)")] = ROOT / "configs" / "demo.yaml",
    site: Annotated[
        Path | None, typer.Option(metavar="DIR", help="of a source site (default: a small phantom, made for this)")
    ] = None,
    messages: Annotated[int, typer.Option(min=1, help="of each kind and way")] = 3,
    as_json: Json = False,
) -> None:
    """Tell what a long-lived worker saves: a message through it against a plain process for each message."""
    with tempfile.TemporaryDirectory(prefix="crossprobe-bench-") as folder:
        result = measure(study, site or _phantom(Path(folder)), Path(folder), messages)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    table = Table(title=f"seconds a message, median of {messages}; {os.cpu_count()} cores, one thread a process")
    for column in ("message", "worker", "plain process", "ratio plain / worker"):
        table.add_column(column, justify="right" if column != "message" else "left")
    for name, row in result.items():
        table.add_row(name, f"{row['worker_s']:.2f}", f"{row['plain_s']:.2f}", f"{row['ratio']:.2f}")
    Console().print(table)


def measure(study_file: Path, folder: Path, work: Path, messages: int) -> dict[str, dict[str, float]]:
    """Return median seconds of a no-op (an enrolment) and of a training round, for both ways.

    Args:
        folder: of a source site.
        work: for state and socket.
        messages: of each kind and way.

    Raises:
        RunError: if any message is refused.
    """
    study = load_study(study_file)
    kinds = {
        "no-op (enrolment)": [pack(EnrolRequest(study=study.hash()))] * messages,
        "round (supervise)": list(_rounds(study, messages)),
    }
    result = {}
    with _worker(study, folder, work) as socket:
        for name, payloads in kinds.items():
            seconds: dict[str, list[float]] = {"worker": [], "plain": []}
            for payload in payloads:
                seconds["worker"].append(_timed([THIN, str(socket)], payload))
                seconds["plain"].append(_timed([PLAIN, str(study_file), str(folder)], payload))
            worker, plain = (statistics.median(seconds[way]) for way in ("worker", "plain"))
            result[name] = {"worker_s": round(worker, 3), "plain_s": round(plain, 3), "ratio": round(plain / worker, 2)}
    return result


def _phantom(folder: Path) -> Path:
    from simulations.phantom.demo import write_sites

    patients: dict = PATIENTS
    return write_sites(folder, source=["lumify_like"], seed=0, patients=patients)[0]


def _rounds(study: Study, count: int) -> Iterator[bytes]:
    """Yield requests of different rounds: a worker answers each round once."""
    from common.networks import initial_networks

    networks = initial_networks(study)
    rounds = [r for r in study.rounds() if r.stage.source is not None and r.stage.source.task == "supervise"]
    first = rounds[0].stage.source
    alike = [r for r in rounds if r.stage.source == first]
    if first is None or len(alike) < count:
        raise RunError(f"the study's first supervised stage has {len(alike)} rounds; give --messages at most that")
    tensors = networks.export(study.components_of(first))
    for round_ in alike[:count]:
        header = TaskRequest(study=study.hash(), round=round_.index, stage=round_.stage.name, task="supervise")
        yield pack(header, tensors)


@contextmanager
def _worker(study: Study, folder: Path, work: Path) -> Iterator[Path]:
    """Run `crossprobe worker` with the study approved, and yield its socket."""
    from clients.data.site import load_site
    from clients.governance.approval import approve
    from clients.governance.state import State
    from clients.node.channel import answers

    state, socket = State.create(work / "state"), work / "w.sock"
    approve(state, load_site(folder), study, by="bench")
    command = [sys.executable, "-m", "crossprobe", "worker", "--site", str(folder.resolve())]
    command += ["--state", str(state.folder), "--socket", str(socket)]
    process = subprocess.Popen(command, cwd=ROOT, env=_environment(), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not answers(socket):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RunError("the worker did not start; run `crossprobe worker` on the folder to see why")
            time.sleep(0.1)
        yield socket
    finally:
        process.terminate()
        process.wait()


def _timed(code_and_arguments: Sequence[str], payload: bytes) -> float:
    """Return the seconds from the start of a process to its reply."""
    begun = time.monotonic()
    command = [sys.executable, "-c", *code_and_arguments]
    found = subprocess.run(command, input=payload, capture_output=True, cwd=ROOT, env=_environment(), check=False)
    seconds = time.monotonic() - begun
    if found.returncode:
        raise RunError(f"a process failed:\n{found.stderr.decode(errors='replace')[-500:]}")
    header, _ = unpack(found.stdout)
    if isinstance(header, Refusal):
        raise RunError(f"a message was refused: {header.code}: {header.message}")
    return seconds


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    only(
        main,
        "python -m simulations.benchmarks.worker",
        "python -m simulations.benchmarks.worker --site runs/demo/sites/source-1-lumify-like --messages 5 --json",
    )
