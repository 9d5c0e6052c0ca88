"""What sums under masks cost: `python -m simulations.benchmarks.secure_aggregation --out docs/secure-aggregation-cost`.

One round of one role, without network or training: every site masks an update of the demo's size, the server adds up
and asks for help, once with all sites and once with as many missing as a round can lose. Beside it, in the same run,
the plain sum of the same updates, which the one under masks must equal bit for bit, and one round of Flower's SecAgg+.
Writes tables and their numbers.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from clients.node.masking import Masker
from common.components import Tensors
from common.errors import RunError
from common.masking import threshold
from common.messages import Masking, Message, TaskReply, UnmaskReply
from common.options import Seed, only
from common.seeds import derive
from common.signing import site_key
from server.aggregation.exact_mean import ExactMean
from server.aggregation.masked_sum import MaskedSum
from simulations.benchmarks import flower_secagg
from simulations.benchmarks.flower_secagg import Reference
from simulations.publication import origin, publish

#: Both branches of the demo's network.
VALUES = 2 * 320_000
SITES = (3, 10, 50)
PATIENTS = 40
NAME = "target_branch.encoder/w"
STUDY, REQUEST = "5" * 64, "e" * 64


@dataclass(frozen=True)
class Cost:
    """Of one round: seconds of processor time of one site and of the server, bytes of one site.

    Attributes:
        missing: sites that were asked and did not send.
        site_mask, site_help: masking an update and sealing its shares; helping with the sum.
        server_plain, server_masked: adding up all updates; the same under masks, with everything that lays it bare.
        bytes_plain, bytes_masked, bytes_help: of a reply with the update; of question and answer of the second half.
        flower: the same with Flower's SecAgg+.
    """

    sites: int
    missing: int
    site_mask: float
    site_help: float
    server_plain: float
    server_masked: float
    bytes_plain: int
    bytes_masked: int
    bytes_help: int
    flower: Reference


def updates_of(seed: int, site: int) -> Tensors:
    """Return an update, float32, as large as one of both branches."""
    rng = np.random.default_rng((seed, site))
    return {NAME: rng.normal(0, 0.01, VALUES).astype(np.float32)}


def measure(sites: int, missing: int, seed: int) -> Cost:
    """Return the cost of one round. Raises RunError if the sum is not the plain one."""
    names = [f"site-{number:04d}" for number in range(sites)]
    secrets = {name: derive(b"benchmark", seed, name) for name in names}
    maskers = {name: Masker(name, STUDY, own, site_key(own)) for name, own in secrets.items()}
    masking = Masking(keys={name: own.mask_key() for name, own in maskers.items()}, patients=PATIENTS * sites)
    plain, masked = ExactMean(PATIENTS * sites), MaskedSum(masking, REQUEST)
    header = TaskReply(study=STUDY, round=0, stage="refine", task="self_train", request=REQUEST, metrics={})
    seconds = dict.fromkeys(("mask", "help", "plain", "server"), 0.0)
    sizes = dict.fromkeys(("plain", "masked", "help"), 0)

    def timed(what: str, since: float) -> None:
        seconds[what] += time.process_time() - since

    for number, name in enumerate(names[missing:]):
        updates = updates_of(seed, number)
        start = time.process_time()
        hidden, shares = maskers[name].masked(updates, PATIENTS, masking, REQUEST)
        timed("mask", start)
        start = time.process_time()
        masked.add(name, hidden, shares)
        timed("server", start)
        start = time.process_time()
        plain.add(updates, PATIENTS)
        timed("plain", start)
        if number == 0:
            sizes["plain"] = len(Message.of(header, updates).payload)
            sizes["masked"] = len(Message.of(header.model_copy(update={"shares": shares}), hidden).payload)
    for name in names[missing:]:
        start = time.process_time()
        question = Message.of(masked.question(name, header))
        timed("server", start)
        start = time.process_time()
        shares, seeds = maskers[name].reveal(question.header)  # type: ignore[arg-type]
        timed("help", start)
        answer = UnmaskReply(
            study=STUDY, round=0, task=header.task, request=question.sha256, shares=shares, seeds=seeds
        )
        sizes["help"] = len(question.payload) + len(Message.of(answer).payload)
        start = time.process_time()
        masked.helped(name, answer)
        timed("server", start)
    start = time.process_time()
    total = masked.total()
    timed("server", start)
    laid_bare = ExactMean(PATIENTS * sites)
    laid_bare.add_sum(total, PATIENTS * (sites - missing))
    if any(x.tobytes() != plain.mean()[name].tobytes() for name, x in laid_bare.mean().items()):
        raise RunError(f"the sum of {sites} sites under masks is not the plain one: this is a fault of the software.")
    sent = sites - missing
    return Cost(
        sites=sites,
        missing=missing,
        site_mask=seconds["mask"] / sent,
        site_help=seconds["help"] / sent,
        server_plain=seconds["plain"],
        server_masked=seconds["server"],
        bytes_plain=sizes["plain"],
        bytes_masked=sizes["masked"],
        bytes_help=sizes["help"],
        flower=flower_secagg.measure(
            [updates_of(seed, number)[NAME] for number in range(sites)], missing, threshold(sites), PATIENTS
        ),
    )


def page(costs: list[Cost], settings: dict[str, object]) -> str:
    """Return the table as Markdown."""
    lines = [
        "<!-- written by `python -m simulations.benchmarks.secure_aggregation` -->",
        f"`{settings['command']}`",
        "",
        f"{settings['hardware']}. One round of one role, updates of {VALUES:,} values, processor seconds; all sums "
        "were the plain ones, bit for bit.",
        "",
        "| sites | missing | a site: mask | a site: help | server: plain sum | server: under masks | reply | question "
        "and answer |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for own in costs:
        seconds = (own.site_mask, own.site_help, own.server_plain, own.server_masked)
        cells = [str(own.sites), str(own.missing), *(f"{value:.2f} s" for value in seconds)]
        cells.append(f"{own.bytes_masked / own.bytes_plain:.2f} x {own.bytes_plain / 1e6:.1f} MB")
        lines.append(f"| {' | '.join(cells)} | {own.bytes_help / 1e3:.0f} kB |")
    lines += [
        "",
        "The same updates through one round of Flower's SecAgg+, every site the neighbour of all, the threshold "
        "ours. Its integers are 22 bits of a clipped number; its random masks come of a 32-bit seed each "
        "(`flwr.common.secure_aggregation.secaggplus_utils.pseudo_rand_gen`), ours of 128 bits by AES.",
        "",
        "| sites | missing | a site: ours, SecAgg+ | server: ours, SecAgg+ | update: ours, SecAgg+ "
        "| all else: ours, SecAgg+ | mean off by: ours, SecAgg+ |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for own in costs:
        theirs = own.flower
        cells = [
            str(own.sites),
            str(own.missing),
            f"{own.site_mask + own.site_help:.2f} s, {theirs.site:.2f} s",
            f"{own.server_masked:.2f} s, {theirs.server:.2f} s",
            f"{own.bytes_masked / 1e6:.1f} MB, {theirs.bytes_update / 1e6:.1f} MB",
            f"{own.bytes_help / 1e3:.0f} kB, {theirs.bytes_else / 1e3:.0f} kB",
            f"0, {theirs.error:.1e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main(
    out: Annotated[Path, typer.Option(metavar="FILE", help="the table's path, without its ending")],
    sites: Annotated[list[int] | None, typer.Option(min=3, metavar="N ...", help="(default: 3 10 50)")] = None,
    seed: Seed = 0,
) -> None:
    """Sum updates under masks and plainly, with all sites and with some missing; write OUT.md and OUT.json."""
    settings = origin("simulations.benchmarks.secure_aggregation", seed)
    costs = []
    for count in sites or SITES:
        for missing in sorted({0, count - threshold(count)}):
            Console(stderr=True).print(f"{count} sites, {missing} missing")
            costs.append(measure(count, missing, seed))
    content = {**settings, "costs": [asdict(cost) for cost in costs]}
    publish(out, content, page(costs, settings))


if __name__ == "__main__":
    only(
        main, "python -m simulations.benchmarks.secure_aggregation --out docs/secure-aggregation-cost", option="--sites"
    )
