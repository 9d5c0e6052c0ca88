"""`python -m simulations.fuzz --seed 0 --cases 2000 --json FILE`: bad inputs into every command that reads any."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from common.files import PUBLIC, write_atomically
from common.options import Seed, only
from simulations.fuzz.watch import MOST_MIB, MOST_S, Ended, run_cases
from simulations.publication import origin, write_figures
from simulations.show import counter, progress_bar


def summary(ended: list[Ended], settings: dict[str, object]) -> dict[str, object]:
    """The figures of a run: how the cases ended, by command, and every fault."""
    kinds: Counter[str] = Counter()
    for own in ended:
        outcome = "fault" if own.faults else "clean result" if own.code == 0 else "clear error"
        kinds[f"{own.what.partition(':')[0]}: {outcome}"] += 1
    return {
        **settings,
        "cases": len(ended),
        "allowed": {"seconds": MOST_S, "mib": MOST_MIB},
        "ended": dict(sorted(kinds.items())),
        "slowest_s": max(own.seconds for own in ended),
        "most_mib": max(own.mib for own in ended),
        "faults": [asdict(own) for own in ended if own.faults],
    }


def sentence(found: dict[str, object]) -> str:
    """The figures in a sentence for the documents."""
    ended: dict[str, int] = found["ended"]  # type: ignore[assignment]
    clean, clear = (
        sum(n for kind, n in ended.items() if kind.endswith(own)) for own in ("clean result", "clear error")
    )
    return (
        f"`{found['command']}`: {found['cases']} bad inputs, {clean} with a clean result, {clear} with a clear error, "
        f"{len(found['faults'])} with a fault; the slowest took {found['slowest_s']:.1f} s of a processor, the largest "  # type: ignore[arg-type]
        f"{found['most_mib']:.0f} MiB of memory, torch and all libraries included."
    )


def main(
    seed: Seed = 0,
    cases: Annotated[int, typer.Option(min=1, help="how many")] = 2000,
    first: Annotated[int, typer.Option(min=0, help="number of the first, to repeat one")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="write the figures there, and beside it as .md what is printed"),
    ] = None,
) -> None:
    """Put bad inputs into `site new`, `site check`, `predict`, the desk and every kind of settings.

    The first are large ones, the same for every seed; all others are drawn. Each must end with a clean result or a
    clear error: no traceback, no hang, no gigabyte, no file outside the output.
    """
    ended = []
    with progress_bar() as bar:
        show = counter(bar, "bad inputs")
        for own in run_cases(seed, range(first, first + cases)):
            ended.append(own)
            show(len(ended), cases)
            if own.faults:
                bar.console.print(f"{own.number} {own.what}: {'; '.join(own.faults)}", markup=False, highlight=False)
    found = summary(ended, origin("simulations.fuzz", seed))
    if out is not None:
        page = f"<!-- written by `python -m simulations.fuzz` -->\n{sentence(found)}\n"
        write_figures(out, found)
        write_atomically(out.with_suffix(".md"), page.encode(), mode=PUBLIC)
    print(sentence(found))
    if found["faults"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    only(main, "python -m simulations.fuzz --seed 0 --cases 2000 --json docs/fuzz.json")
