"""From the numbers of every seed to an ablation's table: means, paired differences, cost, gap closed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simulations.ablation.comparison import BySeed, Difference, difference, holm
from simulations.ablation.variants import RIVALS, Variant

#: Below this Dice a patient counts as failed.
FAILED = 0.5
BASELINE, ORACLE = "baseline", "oracle: the target's labels too"
PAPER, RELEASED = "+ both, infusion head: the paper's recipe", "all stages, as released"
#: What the rounds of `refine` are measured by, without a head.
AVERAGE = "all stages (average)"
SHORT_TWO = "two averaged baselines with the paper's recipe's steps"
#: Questions that are not about the baseline: (row, the row it is compared with).
CONTRASTS = (
    ("+ masked modelling", SHORT_TWO),
    ("+ contrast", SHORT_TWO),
    (PAPER, SHORT_TWO),
    (PAPER, "baseline with the paper's recipe's steps"),
    (PAPER, "+ both (average)"),
    (RELEASED, AVERAGE),
    (RELEASED, "two averaged baselines"),
    (RELEASED, "refine without pretraining"),
    (RELEASED, PAPER),
    (RELEASED, "all stages on pooled data"),
    *((RELEASED, list(rival.rows)[-1]) for rival in RIVALS),
)


def tally(variants: Sequence[Variant], contents: Sequence[Mapping[str, Any]], *, same_patients: bool) -> dict[str, Any]:
    """Return the table of one data set.

    Args:
        contents: for each seed, variant -> what `run_cell` wrote for it.
        same_patients: whether the test patients are the same people for every seed.

    Returns:
        `rows`: name -> {variant, minutes (median) and bytes of one seed, `target` and `source`: {mean, seeds,
        share of patients `failing`, difference to the baseline}, `p_holm`: p on the target, corrected over the
        variants, for one row of each};
        `contrasts`; `gap`: see `_gap`; `courses`: for each seed, the target's mean Dice after each round of `refine`;
        `patients`: how many different people were tested at targets; `same_patients` as given.
    """
    owner = {row: variant for variant in variants for row in variant.rows}
    dice = {role: {row: values(contents, owner[row], row, role) for row in owner} for role in ("target", "source")}

    def compare(role: str, row: str, other: str) -> Difference:
        return difference(dice[role][row], dice[role][other], same_patients=same_patients)

    others = [row for row in owner if row != BASELINE]
    against = {(role, row): compare(role, row, BASELINE) for role in dice for row in others}
    # One row a variant, its last: the rows of one model say nearly the same. The oracle asks no question.
    tested = [list(v.rows)[-1] for v in variants if v.rows and v.where != "oracle" and BASELINE not in v.rows]
    measured = dice["target"][BASELINE]
    corrected = dict(zip(tested, holm([against["target", row].p for row in tested]), strict=True))
    rows: dict[str, dict[str, Any]] = {}
    for row, variant in owner.items():
        costs = [content[variant.name] for content in contents]
        rows[row] = {
            "variant": variant.name,
            "minutes": round(float(np.median([cost["seconds"] for cost in costs])) / 60, 1),
            "bytes": int(np.median([cost["bytes"] for cost in costs])),
        }
        for role in dice:
            seeds = [float(np.mean(list(own.values()))) for own in dice[role][row]]
            failing = np.mean([np.mean([value < FAILED for value in own.values()]) for own in dice[role][row]])
            rows[row][role] = {"mean": float(np.mean(seeds)), "seeds": seeds, "failing": float(failing)}
            if row != BASELINE:
                rows[row][role]["difference"] = against[role, row].as_json()
        if row in corrected:
            rows[row]["p_holm"] = corrected[row]
    contrasts = [
        {"row": row, "against": other, "difference": compare("target", row, other).as_json()}
        for row, other in CONTRASTS
        if row in owner and other in owner
    ]
    return {
        "rows": rows,
        "contrasts": contrasts,
        "gap": _gap(rows),
        "patients": len(measured[0]) if same_patients else sum(len(dice) for dice in measured),
        "same_patients": same_patients,
        "courses": [content[v.name]["course"] for content in contents for v in variants if v.each_round],
    }


def values(contents: Sequence[Mapping[str, Any]], variant: Variant, row: str, role: str) -> BySeed:
    """Return, for each seed, site/patient -> Dice of a row on all sites of a role."""
    return [
        {
            f"{site}/{patient}": dice
            for site, measured in content[variant.name]["sites"].items()
            if measured["role"] == role
            for patient, dice in measured["rows"][row].items()
        }
        for content in contents
    ]


def _gap(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return the gap between baseline and oracle in Dice, and row -> the share of it that it closes.

    Empty without an oracle.
    """
    if ORACLE not in rows:
        return {}
    low, high = rows[BASELINE]["target"]["mean"], rows[ORACLE]["target"]["mean"]
    return {
        "points": high - low,
        "closed": {row: (numbers["target"]["mean"] - low) / (high - low) for row, numbers in rows.items()},
    }
