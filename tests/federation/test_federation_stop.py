"""A run that the coordinator stopped goes on to the same bits. Minutes, so `make federation-test`."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from federation import Federation
from processes import wait_until
from tiny import content, workers, write_study

from common.run_folder import RunFolder
from common.study import load_study
from server import history
from server.run import run_study
from simulations.local import LocalTransport


@pytest.mark.federation
def test_a_stopped_run_is_resumed_to_the_same_bits(pair: Sequence[Path], tmp_path: Path) -> None:
    stages = [stage | {"rounds": 1} for stage in content()["stages"] if stage["name"] in ("pretrain", "refine")]
    with Federation(tmp_path, write_study(tmp_path / "study.yaml", stages=stages), pair) as federation:
        federation.start_coordinator()
        federation.register()
        federation.start_sites()
        command = [sys.executable, "-m", "crossprobe", *federation.run_command()]
        running = subprocess.Popen(
            command, env=federation.console_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            wait_until(lambda: history.read(federation.run_folder), "the first round", 120)
            stopped = federation.console("study", "stop", str(federation.run_folder))
            said = running.communicate(timeout=60)[0]
        finally:
            running.kill()
        assert (stopped.returncode, running.returncode) == (0, 1), f"{stopped.stderr}\n{said}"
        assert "start again with --resume" in said
        resumed = federation.run("--resume")
        assert resumed.returncode == 0, f"{resumed.stdout}\n{resumed.stderr}\n{federation.logs()}"
        study = load_study(federation.study)
        run_study(study, LocalTransport(workers(study, pair)), tmp_path / "local")
        assert RunFolder(federation.run_folder).model.read_bytes() == RunFolder(tmp_path / "local").model.read_bytes()
