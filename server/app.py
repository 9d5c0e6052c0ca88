"""The Flower ServerApp: reads its run's configuration and runs the study over the Grid."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import CrossProbeError
from common.files import write_atomically
from common.study import load_study
from server.federation import NODES
from server.flower_cli import ERROR
from server.grid import GridTransport
from server.lock import run_folder
from server.run import run_study

log = logging.getLogger("crossprobe.server")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run `study` into `out`; on an error leave its message beside the checkpoint and fail the Flower run."""
    config = context.run_config
    out = Path(str(config["out"]))
    try:
        with run_folder(out):
            (out / ERROR).unlink(missing_ok=True)
            study = load_study(Path(str(config["study"])))
            quorum = [
                least
                for role, least in study.participation.quorum.items()
                if any(s.task_of(role) for s in study.stages)
            ]

            def enrolled(nodes: Mapping[str, int]) -> None:
                content = {name: str(node) for name, node in sorted(nodes.items())}
                write_atomically(out / NODES, json.dumps(content).encode())

            transport = GridTransport(grid, sum(quorum), on_enrolled=enrolled)
            run_study(study, transport, out, resume=bool(config["resume"]))
    except CrossProbeError as error:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / ERROR, str(error).encode())
        raise
