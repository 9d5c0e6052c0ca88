"""What it costs to add replies up exactly: `python -m simulations.benchmarks.aggregation`.

Beside it, in the same run and taking turns, what numpy needs to add the same float32 values, which is the least that
any server can do. Each way is a process of its own, so that its memory is its own. Making the replies is not counted.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import typer

from common.contract import check_tensors
from common.messages import Message, TaskReply
from common.options import Seed, only
from server.aggregation.exact_mean import ExactMean
from simulations.publication import origin, tell

#: Replies and megabytes (10^6 bytes) of each.
CASES = ((1000, 1), (20, 100))
PATIENTS = 40
NAME = "target_branch.encoder/w"
#: So different replies are made; the rest are these again.
DIFFERENT = 2


@dataclass(frozen=True)
class Cost:
    """Of adding up all replies: seconds of one core, and MB by which the process grew beyond what one reply takes."""

    way: str
    replies: int
    mb: int
    seconds: float
    grew_mb: float


def in_numpy(updates: Iterator[np.ndarray], replies: int) -> float:
    """`sum += update`, float32."""
    total, seconds = None, 0.0
    for update in updates:
        began = time.process_time()
        total = update.copy() if total is None else np.add(total, update, out=total)
        seconds += time.process_time() - began
    return seconds


def exactly(updates: Iterator[np.ndarray], replies: int) -> float:
    """As the server's `exact_mean`."""
    mean, seconds = ExactMean(PATIENTS * replies), 0.0
    for update in updates:
        began = time.process_time()
        mean.add({NAME: update}, PATIENTS)
        seconds += time.process_time() - began
    return seconds


def from_bytes(updates: Iterator[np.ndarray], replies: int) -> float:
    """From the bytes of a message: parsed, checked against the contract, and added up."""
    mean, seconds = ExactMean(PATIENTS * replies), 0.0
    header = TaskReply(study="5" * 64, round=0, stage="refine", task="self_train", request="e" * 64, metrics={})
    for update in updates:
        payload = Message.of(header, {NAME: update}).payload
        began = time.process_time()
        tensors = Message.parse(payload).tensors
        check_tensors(tensors, {NAME: update.shape}, max_norm=1e6)
        mean.add(tensors, PATIENTS)
        seconds += time.process_time() - began
    return seconds


WAYS: dict[str, Callable[[Iterator[np.ndarray], int], float]] = {
    "numpy, float32": in_numpy,
    "exact mean": exactly,
    "a message's bytes, checked, exact mean": from_bytes,
}


def measure(way: str, replies: int, mb: int, seed: int) -> Cost:
    """Return what a way costs; in a process that did nothing else before."""
    values = 250_000 * mb
    made = [np.random.default_rng((seed, i)).standard_normal(values, np.float32) / 100 for i in range(DIFFERENT)]
    # that much was in use, also if not now: growth is only seen beyond it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = WAYS[way]((made[i % DIFFERENT] for i in range(replies)), replies)
    grew = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Cost(way, replies, mb, round(seconds, 3), round(grew * 1024 / 1e6, 1))


def page(costs: list[Cost], settings: dict[str, object]) -> str:
    """Return the table as Markdown."""
    lines = [
        f"`{settings['command']}`, {settings['hardware']}, seed {settings['seed']}.",
        "",
        "| replies | way | CPU seconds | times numpy | memory, MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    least = {(own.replies, own.mb): own.seconds for own in costs if own.way == next(iter(WAYS))}
    for own in costs:
        times = own.seconds / least[own.replies, own.mb]
        lines.append(
            f"| {own.replies:,} of {own.mb} MB | {own.way} | {own.seconds:.2f} | {times:.1f} | {own.grew_mb:.0f} |"
        )
    return "\n".join(lines)


def main(
    one_in: Annotated[int, typer.Option(metavar="N", min=1, max=20, help="add up one of so many replies only")] = 1,
    seed: Seed = 0,
) -> None:
    """Add up many small and a few large replies; write docs/performance/aggregation.json and its part of the page."""
    costs = []
    for replies, mb in ((every // one_in, mb) for every, mb in CASES):
        for way in WAYS:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                costs.append(alone.submit(measure, way, replies, mb, seed).result())
    settings = origin("simulations.benchmarks.aggregation", seed)
    tell("aggregation", {**settings, "costs": [asdict(cost) for cost in costs]}, page(costs, settings))


if __name__ == "__main__":
    only(main, "python -m simulations.benchmarks.aggregation")
