"""Updates of 16 bits beside those of 32: `python -m simulations.benchmarks.short_updates --sites DIR ...`.

One study twice in one process: once as sites send their updates, once with each tensor rounded to 16-bit integers
times a power of two, whose rounding error the site adds to its next update (error feedback: Seide et al. 2014;
Karimireddy et al. 2019). Such values are exact in 32 bits too, so the server's sums stay exact. A trial: the product
sends 32 bits.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

from clients.node.simulated import open_worker
from clients.node.worker import Worker
from common.messages import Message, TaskReply
from common.options import only
from common.study import Study, load_study
from server import history
from server.run import run_study
from server.transport import Failure
from simulations.local import LocalTransport
from simulations.publication import origin, tell

MOST = 2**15 - 1


@dataclass(frozen=True)
class Measured:
    """What a run came to.

    Attributes:
        megabytes: from sites in training, without headers.
        dice: site -> mean Dice of the released model over its labelled test patients, in [0, 1].
    """

    bits: int
    megabytes: float
    dice: dict[str, float]


def shortened(update: np.ndarray) -> np.ndarray:
    """Return an update [any shape, float32] whose values are 16-bit integers times a power of two that it gives."""
    most = float(np.abs(update).max(initial=0.0))
    step = 2.0 ** np.ceil(np.log2(most / MOST)) if most > 0 else 1.0
    return (np.rint(update.astype(np.float64) / step) * step).astype(np.float32)


class ShortTransport(LocalTransport):
    """Workers whose updates go through 16 bits; what is lost in a round is added to the next one's update.

    Attributes:
        values: numbers that were sent in updates.
    """

    def __init__(self, workers: Sequence[Worker], *, short: bool) -> None:
        super().__init__(workers)
        self.short, self.values = short, 0
        self._lost: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros((), np.float32))

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """Yield each worker's reply, its update rounded."""
        for site, request in requests.items():
            payload = self.workers[site].handle(request)
            reply = Message.parse(payload)
            self.values += sum(update.size for update in reply.tensors.values())
            if not self.short or not isinstance(reply.header, TaskReply):
                yield site, payload
                continue
            sent = {}
            for name, update in reply.tensors.items():
                whole = update + self._lost[site, name]
                sent[name] = shortened(whole)
                self._lost[site, name] = whole - sent[name]
            yield site, Message.of(reply.header, sent).payload


def measure(study: Study, folders: Sequence[Path], *, short: bool) -> Measured:
    """Run a study to its end and return what it came to."""
    workers = [open_worker(study, folder) for folder in folders]
    transport = ShortTransport(workers, short=short)
    with TemporaryDirectory(prefix="crossprobe-short-") as run:
        run_study(study, transport, Path(run))
        last = [record for record in history.read(Path(run)) if record.counted][-1]
    dice = {name: site.metrics["infusion/dice/mean"] for name, site in last.sites.items() if site.metrics}
    bits = 16 if short else 32
    return Measured(bits, round(transport.values * bits / 8e6, 1), dice)


def page(found: Sequence[Measured], settings: Mapping[str, object]) -> str:
    """Return the table as Markdown."""
    sites = list(found[0].dice)
    lines = [
        f"`{settings['command']}`, {settings['hardware']}.",
        "",
        f"| bits of a number | MB from sites | {' | '.join(f'{site}, Dice %' for site in sites)} |",
        f"| --- | --- |{' --- |' * len(sites)}",
    ]
    for own in found:
        dice = " | ".join(f"{100 * own.dice[site]:.1f}" for site in sites)
        lines.append(f"| {own.bits} | {own.megabytes:.1f} | {dice} |")
    return "\n".join(lines)


def main(
    sites: Annotated[list[Path], typer.Option(metavar="DIR ...", help="site folders")],
    study: Annotated[Path, typer.Option(metavar="STUDY", help="study file (YAML)")] = Path("configs/phantom.yaml"),
) -> None:
    """Run a study with updates of 32 and of 16 bits; write their part of docs/performance.md."""
    console, opened = Console(stderr=True), load_study(study)
    settings = origin("simulations.benchmarks.short_updates", opened.seed)
    found = []
    for short in (False, True):
        found.append(measure(opened, sites, short=short))
        console.print(found[-1])
    tell("short-updates", {**settings, "found": [asdict(own) for own in found]}, page(found, settings))


if __name__ == "__main__":
    torch.set_num_threads(1)
    only(main, "python -m simulations.benchmarks.short_updates --sites runs/demo/sites/*", option="--sites")
