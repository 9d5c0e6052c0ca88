"""A round between two deployed hospitals beside Flower's own no-op: `python -m simulations.benchmarks.deployed_round`.

One federation on loopback with every process that it has in earnest. First a study whose rounds train for one step,
then an app of a few lines that sends the same bytes to the same SuperNodes and gets them back, waiting as Flower's own
strategies wait. What remains of a round beside the worker's own time and the no-op is CrossProbe's.
"""

import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
import yaml

from clients.governance.ledger import read as read_ledger
from clients.governance.state import State
from common.components import Role, Split
from common.options import Seed, only
from server import history
from server.federation import deployment
from server.federation.flower_cli import FlowerCli
from server.signed import admit
from simulations.benchmarks.many_sites import POLICY
from simulations.federation import LocalFederation
from simulations.phantom.demo import write_sites
from simulations.publication import origin, tell

PYPROJECT = """
[project]
name = "no-op"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "crossprobe"
fab-include = ["*.py"]
[tool.flwr.app.components]
serverapp = "no_op:server"
clientapp = "no_op:client"
[tool.flwr.app.config]
out = ""
rounds = 1
values = 1
"""
NO_OP = """
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()


@client.train()
def train(message, context):
    return Message(message.content, reply_to=message)


@server.main()
def main(grid, context):
    config, seconds = context.run_config, []
    for index in range(int(config["rounds"])):
        sent = ArrayRecord({"x": Array(np.full(int(config["values"]), index, np.float32))})
        began = time.monotonic()
        messages = [
            Message(RecordDict({"arrays": sent}), dst_node_id=node, message_type="train")
            for node in grid.get_node_ids()
        ]
        replies = list(grid.send_and_receive(messages))
        assert len(replies) == len(messages) and not any(reply.has_error() for reply in replies)
        seconds.append(time.monotonic() - began)
    Path(config["out"]).write_text(json.dumps(seconds))
"""
SUPERVISE = {"task": "supervise", "trains": ["source_branch"], "steps": 1}
SELF_SUPERVISE = {
    "task": "self_supervise",
    "trains": ["target_branch.encoder", "mim_decoder", "projector"],
    "steps": 1,
}
PATIENTS: Mapping[Role, Mapping[Split, int]] = {"source": {"train": 8}, "target": {"train": 8}}


@dataclass(frozen=True)
class Rounds:
    """Seconds of each round, and of them those of the slowest hospital's worker."""

    crossprobe: list[float]
    workers: list[float]
    no_op: list[float]
    bytes_to_a_site: int


def measure(root: Path, rounds: int, seed: int) -> Rounds:
    """Run the study, then the no-op, between the same hospitals."""
    sites = write_sites(
        root / "sites", source=["lumify_like"], target=["telemed_like"], seed=seed, patients=PATIENTS, frames=1
    )
    for site in sites:
        config = yaml.safe_load((site / "site.yaml").read_text())
        (site / "site.yaml").write_text(yaml.safe_dump(config | {"policy": POLICY}))
    study = root / "study.yaml"
    stage = {"name": "pretrain", "rounds": rounds, "source": SUPERVISE, "target": SELF_SUPERVISE}
    study.write_text(yaml.safe_dump({"name": "deployed-round", "stages": [stage]}))
    (root / "federation").mkdir()
    with LocalFederation(root / "federation", study, sites) as federation:
        federation.start_coordinator()
        cli = federation.cli()
        for name in federation.names:
            admit(federation.signing_keys, name, State(federation.kits / name / "state").public_key)
            cli.register(name, federation.kits / name / "node" / "node.pub")
        federation.start_sites()
        run = federation.run_folder
        own = federation.coordinator / "study" / "study.yaml"
        deployment.follow(cli, deployment.start(cli, own, run), run, lambda record: None)
        records = [record for record in history.read(run) if record.counted and record.stage == "pretrain"]
        sent = max(site.bytes_to for record in records for site in record.sites.values())
        ledgers = [State(federation.kits / name / "state").ledger for name in federation.names]
        workers = [max(_at_work(ledger, record.round) for ledger in ledgers) for record in records]
        no_op = _no_op(cli, root, rounds, sent // 4)
    return Rounds([record.seconds for record in records], workers, no_op, sent)


def _at_work(ledger: Path, index: int) -> float:
    """Return the seconds between a round's request and its reply in a site's ledger."""
    times = [datetime.fromisoformat(entry["time"]) for entry in read_ledger(ledger) if entry["round"] == index]
    return (max(times) - min(times)).total_seconds()


def _no_op(cli: FlowerCli, root: Path, rounds: int, values: int) -> list[float]:
    app, out = root / "no-op", root / "no-op.json"
    app.mkdir()
    (app / "pyproject.toml").write_text(PYPROJECT)
    (app / "no_op.py").write_text(NO_OP)
    run = cli.submit({"out": str(out), "rounds": rounds, "values": values}, app=app)
    cli.follow(run, root)
    found: list[float] = json.loads(out.read_text())
    return found


def page(found: Rounds, settings: dict[str, object]) -> str:
    """Return the figures as Markdown."""
    ours, work, no_op = (statistics.median(own) for own in (found.crossprobe, found.workers, found.no_op))
    rows = [
        ("a round of CrossProbe, one training step", found.crossprobe),
        ("of it in the slower hospital's worker: checks, training, ledger", found.workers),
        ("a round of Flower's own no-op", found.no_op),
    ]
    return "\n".join(
        [
            f"`{settings['command']}`, {settings['hardware']}. {len(found.crossprobe)} rounds each, "
            f"{found.bytes_to_a_site / 1e6:.1f} MB to a site; seconds:",
            "",
            "| | median | least | most |",
            "| --- | --- | --- | --- |",
            *(f"| {name} | {statistics.median(own):.1f} | {min(own):.1f} | {max(own):.1f} |" for name, own in rows),
            "",
            f"A round costs {ours / no_op:.2f} x the no-op; beside the worker's {work:.1f} s and the no-op it takes "
            f"{ours - work - no_op:+.1f} s.",
        ]
    )


def main(
    rounds: Annotated[int, typer.Option(min=1, max=200, help="of each")] = 8,
    seed: Seed = 0,
) -> None:
    """Time deployed rounds; write docs/performance/deployed-round.json and its part of the page."""
    settings = origin("simulations.benchmarks.deployed_round", seed)
    with tempfile.TemporaryDirectory(prefix="crossprobe-deployed-") as root:
        found = measure(Path(root), rounds, seed)
    tell("deployed-round", {**settings, **asdict(found)}, page(found, settings))


if __name__ == "__main__":
    only(main, "python -m simulations.benchmarks.deployed_round --rounds 3")
