"""How much of what a site allows do honest rounds use? `python -m simulations.audit.way STUDY --sites DIR ...`.

Runs a study in this process and looks at each request as a hospital does: how far its weights have come
(`clients.learning.travel`), and how much they still resemble the public ones that they began as, if any
(`clients.learning.plausibility`).
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from clients.governance.received import Received
from clients.learning.plausibility import Plausibility, resemblance
from clients.learning.travel import Travel
from clients.node.simulated import open_worker
from clients.node.worker import Worker
from common.messages import Message, TaskRequest
from common.options import StudyFile, only
from common.study import load_study
from common.tasks import TrainingTask
from server.run import run_study
from server.transport import Failure
from simulations.local import LocalTransport


class Watched(LocalTransport):
    """Tells the largest share of the allowed way that a tensor of a request has come, and whose it is.

    Args:
        tell: hears round, site, that share, that tensor, and the least resemblance to public weights, 1 without any.
    """

    def __init__(self, workers: Sequence[Worker], tell: Callable[[int, str, float, str, float], None]) -> None:
        super().__init__(workers)
        study = workers[0].study
        self.plausibility, self.tell = Plausibility(study), tell
        self.travel = Travel(study, self.plausibility.initial)
        self.received = dict.fromkeys(self.workers, Received())

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """Look, and pass on."""
        for site, payload in requests.items():
            self._look(site, Message.parse(payload))
        yield from super().exchange(requests, task, deadline_s)

    def _look(self, site: str, request: Message) -> None:
        worker = self.workers[site]
        assert isinstance(request.header, TaskRequest)
        round_ = worker.rounds[request.header.round]
        task = round_.stage.task_of(worker.site.config.role)
        if not isinstance(task, TrainingTask):
            return
        ways = self.travel.ways(request.tensors, round_, task, self.received[site])
        share, name = max((way / most, name) for name, way, most in ways)
        initial, public = self.plausibility.initial, self.plausibility.public
        alike = [resemblance(x, initial[key]) for key, x in request.tensors.items() if key in public]
        self.tell(round_.index, site, share, name, min(alike, default=1.0))
        self.received[site] = self.received[site].after(request.tensors, round_.index)


def main(
    study_file: StudyFile,
    sites: Annotated[list[Path], typer.Option(metavar="DIR ...", help="site folders, any number of each role")],
) -> None:
    """Print a line for each request: round, site, share of the allowed way, tensor, least resemblance."""
    torch.set_num_threads(1)
    study = load_study(study_file)

    def tell(index: int, site: str, share: float, name: str, alike: float) -> None:
        way = f"{100 * share:.0f} % of the way, {name}"
        print(f"round {index}, {site}: {way}; resemblance to public weights {alike:.3f}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        workers = [open_worker(study, site) for site in sites]
        run_study(study, Watched(workers, tell), Path(folder) / "run")


if __name__ == "__main__":
    only(main, "python -m simulations.audit.way configs/membership.yaml --sites runs/demo/sites/*", option="--sites")
