"""A simulation whose command is killed: Flower must not train on, unseen, into the same folder."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from processes import processes_of, wait_until
from tiny import write_study

from server import history

PROGRAM = """
import sys
from pathlib import Path
from simulations.flower import Simulation
study, out, *sites = map(Path, sys.argv[1:])
with Simulation(cpus=2) as simulation:
    print(simulation.env["FLWR_HOME"], flush=True)
    simulation.run(study, sites, out)
"""


def test_a_killed_simulation_ends_all_that_it_started(pair: Sequence[Path], tmp_path: Path) -> None:
    one = {"task": "supervise", "trains": ["source_branch"], "steps": 2}
    long = write_study(tmp_path / "study.yaml", stages=[{"name": "only", "rounds": 5000, "source": one}])
    run = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, str(long), str(run), *map(str, pair)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        home = process.stdout.readline().strip()
        wait_until(lambda: len(history.read(run)) >= 2, "two rounds", 180)
        assert processes_of(home)
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not processes_of(home), "all ended")
    assert 2 <= len(history.read(run)) < 5000
