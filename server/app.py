"""The Flower ServerApp: reads its run's configuration and runs the study over the Grid."""

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.components import ROLES
from common.errors import CrossProbeError, RunError
from common.files import write_atomically
from common.run_folder import GO_ON, RunFolder
from common.study import load_study
from server.federation.grid import GridTransport
from server.run import run_study
from server.signed import Keys, SignedTransport, keys_folder

log = logging.getLogger("crossprobe.server")
app = ServerApp()

#: How long the ServerApp of a run that was stopped may take to end before a resumed one gives up, in seconds.
STOPPED_S = 90.0
#: How long a role that has too few sites when a run starts is waited for, in seconds: they may still be starting.
START_S = 20.0
#: Simulated sites that have a request at a time: more than there are cores, so that none is idle between two looks.
SIMULATED_AT_ONCE = 32
#: Holds the id of a process whose end is to end this one; set by the simulation.
END_WITH = "CROSSPROBE_END_WITH"


def _end_with(pid: int) -> None:
    """End this process and its group, which holds Ray's, once `pid` is gone.

    Killed, `pid` could not have stopped what Flower runs for it; Ray's processes would linger for minutes.
    """
    while True:
        time.sleep(1.0)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            os.killpg(0, signal.SIGKILL)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run `study` into `out`; on an error leave its message beside the checkpoint and fail the Flower run."""
    if END_WITH in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[END_WITH]),), daemon=True).start()
    config = context.run_config
    run = RunFolder(Path(str(config["out"])))
    with contextlib.suppress(OSError):  # a disk that became read-only is told by what writes to it next
        run.error.unlink(missing_ok=True)

    def enrolled(nodes: Mapping[str, int]) -> None:
        content = {name: str(node) for name, node in sorted(nodes.items())}
        write_atomically(run.nodes, json.dumps(content).encode(), then=GO_ON)

    try:
        study = load_study(Path(str(config["study"])))
        keys = Keys.simulated(study) if config["sites"] else Keys.read(keys_folder())
        grid_transport = GridTransport(
            grid,
            sum(study.needs(role) for role in ROLES),
            at_once=SIMULATED_AT_ONCE if config["sites"] else None,
            on_enrolled=enrolled,
        )
        run_study(
            study,
            SignedTransport(grid_transport, keys),
            run.path,
            resume=bool(config["resume"]),
            wait_s=STOPPED_S,
            enrol_s=0.0 if config["sites"] else START_S,  # nobody joins a simulation later
            key=keys.own,
        )
    except CrossProbeError as error:
        with contextlib.suppress(OSError, RunError):  # a full disk; whoever follows finds the error in Flower's log
            run.make()
            write_atomically(run.error, str(error).encode())
        raise
