"""An ablation against another's baseline on the same patients: what a network or an image size is worth by itself.

`python -m simulations.ablation.between --help`. Both ablations name data sets of the same sites in the same order; the
seeds that both have count, and the differences are by patient.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from common.errors import RunError
from common.options import only
from simulations.ablation.comparison import BySeed, difference
from simulations.ablation.tally import BASELINE, RELEASED, values
from simulations.ablation.variants import chosen
from simulations.publication import origin, write_figures

#: What is compared with the other's baseline: the one's own baseline, and its released model if it has one.
VARIANTS = chosen((BASELINE, "all"))


def rows_of(out: Path, data: str, seeds: Sequence[int], role: str) -> dict[str, BySeed]:
    """Return the rows that a finished ablation has: name -> for each seed, site/patient -> Dice on a role's sites."""
    rows = {}
    for variant, row in zip(VARIANTS, (BASELINE, RELEASED), strict=True):
        files = [out / "cells" / data / f"seed-{seed}" / f"{variant.name}.json" for seed in seeds]
        if all(file.exists() for file in files):
            contents = [{variant.name: json.loads(file.read_text(encoding="utf-8"))} for file in files]
            rows[row] = values(contents, variant, row, role)
    return rows


def compared(out: Path, other: Path) -> dict[str, Any]:
    """Return a finished ablation's rows less the baseline of another, for each data set and role.

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
        pairs[name] = {"target": {}, "source": {}}
        for role, found in pairs[name].items():
            reference = rows_of(other, twin, seeds, role)[BASELINE]
            for row, dice in rows_of(out, name, seeds, role).items():
                try:
                    gain = difference(dice, reference, same_patients=True)
                except ValueError as error:
                    raise RunError(f"{name} and {twin}: {error}; import both from one draw.") from None
                found[row] = {"dice": [_mean(dice), _mean(reference)], "difference": gain.as_json()}
    return {"studies": [mine["study"], theirs["study"]], "seeds": seeds, "pairs": pairs}


def _mean(row: BySeed) -> float:
    return float(np.mean([np.mean(list(dice.values())) for dice in row]))


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
    """Write what the baseline and the released model of an ablation win on the baseline of another, by patient."""
    found = compared(ablation, other)
    write_figures(out, {**origin("simulations.ablation.between", found["seeds"][0]), **found})


if __name__ == "__main__":
    only(
        main,
        "python -m simulations.ablation.between runs/ablation-pretrained runs/ablation-drawn "
        "--out docs/results/between/pretrained.json",
    )
