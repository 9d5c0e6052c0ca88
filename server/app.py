"""The Flower ServerApp: reads its run's configuration and runs the study over the Grid."""

import logging
import os
import signal
import threading
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import CrossProbeError
from common.files import write_atomically
from common.study import load_study
from server.grid import GridTransport
from server.run import run_study

log = logging.getLogger("crossprobe.server")
app = ServerApp()

#: Holds the message of the error that ended a run; `flwr` itself only says that it failed.
ERROR = "error.txt"


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
    out = Path(str(config["out"]))
    (out / ERROR).unlink(missing_ok=True)
    try:
        study = load_study(Path(str(config["study"])))
        quorum = [
            least for role, least in study.participation.quorum.items() if any(s.task_of(role) for s in study.stages)
        ]
        run_study(study, GridTransport(grid, sum(quorum)), out, resume=bool(config["resume"]))
    except CrossProbeError as error:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / ERROR, str(error).encode())
        raise
