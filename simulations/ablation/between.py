"""The baselines of two ablations on the same patients: what another network or image size is worth by itself.

`python -m simulations.ablation.between --help`. Both ablations name data sets of the same sites in the same order; the
seeds that both have count, and the differences are by patient.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from common.errors import RunError
from common.files import write_atomically
from common.options import only
from simulations.ablation.comparison import BySeed, difference
from simulations.ablation.tally import BASELINE, values
from simulations.ablation.variants import chosen
from simulations.publication import origin


def baselines(out: Path, data: str, seeds: list[int], role: str) -> BySeed:
    """Return, for each seed, site/patient -> Dice of a finished ablation's baseline on all sites of a role."""
    (variant,) = chosen((BASELINE,))
    files = [out / "cells" / data / f"seed-{seed}" / f"{variant.name}.json" for seed in seeds]
    contents = [{variant.name: json.loads(file.read_text(encoding="utf-8"))} for file in files]
    return values(contents, variant, BASELINE, role)


def compared(out: Path, other: Path) -> dict[str, Any]:
    """Return the baseline of one finished ablation less that of another, for each data set and role.

    Raises:
        RunError: if one is not finished, or they do not belong together.
    """
    mine, theirs = (_summary(folder) for folder in (out, other))
    seeds = [seed for seed in mine["seeds"] if seed in theirs["seeds"]]
    if not seeds or len(mine["data"]) != len(theirs["data"]):
        raise RunError(
            f"expected ablations with a common seed and as many data sets, found seeds {mine['seeds']} and "
            f"{theirs['seeds']}, {len(mine['data'])} and {len(theirs['data'])} data sets: give two made for each other."
        )
    pairs: dict[str, Any] = {}
    for name, twin in zip(mine["data"], theirs["data"], strict=True):
        pairs[name] = {}
        for role in ("target", "source"):
            row = baselines(out, name, seeds, role)
            reference = baselines(other, twin, seeds, role)
            try:
                found = difference(row, reference, same_patients=True)
            except ValueError as error:
                raise RunError(f"{name} and {twin}: {error}; import both from one draw.") from None
            dice = [float(np.mean([np.mean(list(own.values())) for own in each])) for each in (row, reference)]
            pairs[name][role] = {"dice": dice, "difference": found.as_json()}
    return {"studies": [mine["study"], theirs["study"]], "seeds": seeds, "pairs": pairs}


def _summary(out: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((out / "ablation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(f"{out}: expected the folder of a finished ablation, found no ablation.json in it.") from None
    return summary


def main(
    ablation: Annotated[Path, typer.Argument(metavar="DIR", help="folder of a finished ablation")],
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="folder of the one whose baseline is taken off")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON file to write")],
) -> None:
    """Write what the baseline of an ablation wins on that of another, by patient."""
    found = compared(ablation, other)
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {**origin("simulations.ablation.between", found["seeds"][0]), **found}
    write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    only(
        main,
        "python -m simulations.ablation.between runs/ablation-pretrained runs/ablation-drawn "
        "--out docs/results/between/pretrained.json",
    )
