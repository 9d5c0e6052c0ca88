"""What it costs to look for replies one by one: `python -m simulations.benchmarks.polling`.

The SuperLink's state is a SQLite file, as in a deployment, with a request to each site and no reply. Timed are the
looks themselves; over HTTP each costs some milliseconds more on both sides.
"""

import secrets
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from common.options import Seed, only
from server.federation.grid import HOSPITALS_SHARE, POLL_S, GridTransport
from simulations.publication import origin, tell

SITES = (2, 100, 1000)
DEADLINE_S = 30.0
TASK_TYPE = "flwr-serverapp"
#: A coordinator's line, for comparison.
LINE_MBITS = 1000


@dataclass(frozen=True)
class Cost:
    """Of looking for the replies of so many sites that are all still at work.

    Attributes:
        ask_ms: one request stored, of some bytes; a large one is stored in pieces of 1 MB.
        look_ms: one look at one site.
        all_s: a look at each of them.
        busy: share of the time that the transport spends on looks, in [0, 1].
        noticed_s: a reply is noticed this long after it came, at most.
    """

    sites: int
    ask_ms: float
    look_ms: float
    all_s: float
    busy: float
    noticed_s: float


class Counting(InMemoryGrid):
    """Counts the looks, and the seconds that they and the asking take."""

    looks, seconds, asked_s = 0, 0.0, 0.0

    def push_messages(self, messages):  # type: ignore[no-untyped-def]
        """Store requests."""
        began = time.perf_counter()
        ids = super().push_messages(messages)
        self.asked_s += time.perf_counter() - began
        return ids

    def pull_messages(self, message_ids):  # type: ignore[no-untyped-def]
        """Look for replies."""
        began = time.perf_counter()
        found = super().pull_messages(message_ids)
        self.seconds += time.perf_counter() - began
        self.looks += 1
        return found


def measure(sites: int, folder: Path) -> Cost:
    """Return what looking costs while nobody replies."""
    file = str(folder / f"superlink-{sites}.db")
    factory = LinkStateFactory(file, NoOpFederationManager(), ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME))
    state = factory.state()
    for _ in range(sites):
        node = state.create_node("", "", secrets.token_bytes(32), heartbeat_interval=1e9)
        state.acknowledge_node_heartbeat(node_id=node, heartbeat_interval=1e9)
    run = state.create_run("app", "1", "0", {}, NOOP_FEDERATION_ID, None, "", TASK_TYPE)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, 1, 1
    grid = Counting(state_factory=factory)
    grid.set_run(state.get_run_info(run_ids=[run])[0])
    transport = GridTransport(grid, sites)
    began = time.perf_counter()
    transport.enrol(b"x", patience_s=DEADLINE_S)
    passed = time.perf_counter() - began - grid.asked_s
    look_s = grid.seconds / grid.looks
    noticed = sites * look_s + max(POLL_S, sites * look_s * (1 / HOSPITALS_SHARE - 1))
    return Cost(sites, 1e3 * grid.asked_s / sites, 1e3 * look_s, sites * look_s, grid.seconds / passed, noticed)


def page(costs: list[Cost], settings: dict[str, object]) -> str:
    """Return the table as Markdown."""
    lines = [
        f"`{settings['command']}`, {settings['hardware']}.",
        "",
        "| sites at work | asking one, ms | a look at one, ms | at each, s | share of time, % | noticed within, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for own in costs:
        looks = f"{own.look_ms:.1f} | {own.all_s:.2f} | {100 * own.busy:.0f} | {own.noticed_s:.1f}"
        lines.append(f"| {own.sites:,} | {own.ask_ms:.1f} | {looks} |")
    most = costs[-1]
    busy_s = most.sites * (most.ask_ms + most.look_ms) / 1e3
    line_s = 2 * most.sites * 8 / LINE_MBITS
    lines += [
        "",
        f"So one SuperLink's file takes {1e3 / most.ask_ms:.0f} requests a second. To ask {most.sites:,} hospitals and "
        f"to take their replies keeps it busy for {busy_s:.1f} s of a round; {most.sites:,} MB each way take "
        f"{line_s:.0f} s over a line of {LINE_MBITS:,} Mbit/s. This version of Flower has SQLite alone, and one "
        "SuperLink.",
    ]
    return "\n".join(lines)


def main(seed: Seed = 0) -> None:
    """Time looks for replies; write docs/performance/polling.json and its part of the page."""
    settings = origin("simulations.benchmarks.polling", seed)
    with tempfile.TemporaryDirectory(prefix="crossprobe-polling-") as folder:
        costs = [measure(sites, Path(folder)) for sites in SITES]
    tell("polling", {**settings, "costs": [asdict(cost) for cost in costs]}, page(costs, settings))


if __name__ == "__main__":
    only(main, "python -m simulations.benchmarks.polling")
