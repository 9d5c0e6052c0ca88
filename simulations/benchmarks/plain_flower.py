"""The same training on plain Flower, to be measured beside: its FedAvg, its simulation, its way to send tensors.

The sites take the very same gradient steps. What there is not: the contract and its checks, signatures, exact sums,
checkpoints, a history, a policy.

    python -m simulations.benchmarks.plain_flower WORK.json

reads a `Work`, and prints a line of JSON: when each round began and ended, in seconds since 1970.
"""

import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

#: Holds the path of the `Work`, for the processes that Ray starts.
WORK_VARIABLE = "CROSSPROBE_PLAIN_WORK"

client, server = ClientApp(), ServerApp()


@dataclass(frozen=True)
class Work:
    """What plain Flower is to do.

    Attributes:
        study: its file; the sites train what its first stage gives the sources.
        sites: folders of source sites.
        rounds: how many.
        cpus: of this machine for sites, one each.
    """

    study: str
    sites: list[str]
    rounds: int
    cpus: int


def work() -> Work:
    """Return the work of this process."""
    return Work(**json.loads(Path(os.environ[WORK_VARIABLE]).read_text()))


@lru_cache(maxsize=64)
def opened(site: str):  # type: ignore[no-untyped-def]
    """Return a site's worker, of which only the images and networks are used; as many are kept as by a simulation."""
    from clients.node.simulated import cached_worker

    return cached_worker(work().study, site)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train on one site's images from the weights received, and send the weights back."""
    from clients.learning.training import TaskContext, perform

    worker = opened(work().sites[int(context.node_config["partition-id"])])
    round_ = worker.rounds[int(message.content.config_records["config"]["server-round"]) - 1]
    task = round_.stage.source
    worker.networks.load({name: array.numpy() for name, array in message.content.array_records["arrays"].items()})
    policy = worker.site.config.policy
    perform(TaskContext(worker.study, round_, task, worker.networks, worker.data, policy, worker.secret))
    trained = {name: Array(x) for name, x in worker.networks.export(task.trains).items()}
    metrics = MetricRecord({"num-examples": worker.patients})
    return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=message)


class Timed(FedAvg):
    """FedAvg that notes when its rounds begin and end."""

    def __init__(self, sites: int) -> None:
        super().__init__(
            fraction_evaluate=0.0, min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites
        )
        self.began: list[float] = []
        self.ended: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin a round."""
        self.began.append(time.time())
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """End a round."""
        done = super().aggregate_train(server_round, replies)
        self.ended.append(time.time())
        return done


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Train for all rounds."""
    from common.networks import initial_networks
    from common.study import load_study

    own = work()
    study = load_study(Path(own.study))
    task = study.stages[0].source
    assert task is not None
    tensors = initial_networks(study).export(study.components_of(task))
    strategy = Timed(len(own.sites))
    strategy.start(grid, ArrayRecord({name: Array(x) for name, x in tensors.items()}), num_rounds=own.rounds)
    print(json.dumps({"began": strategy.began, "ended": strategy.ended}), flush=True)


if __name__ == "__main__":
    from flwr.simulation import run_simulation

    from simulations.benchmarks import plain_flower  # by its name, as the processes of the sites import it

    os.environ[WORK_VARIABLE] = sys.argv[1]
    resources = {"client_resources": {"num_cpus": 1.0}, "init_args": {"num_cpus": float(work().cpus)}}
    run_simulation(plain_flower.server, plain_flower.client, len(work().sites), backend_config=resources)
