"""The target branch of each released model alone: what a live picture loses that has time for one network."""

from collections.abc import Sequence
from typing import Any

from simulations.ablation.tally import RELEASED

#: The row of the branch that learns on the unlabelled probe.
BRANCH = "all stages (target branch)"
#: Dice that a model for live video may be short of the whole one.
GOAL = 0.01


def alone(summaries: Sequence[dict[str, Any]]) -> str:
    """Return the section on every data set of these ablations that trains two branches, or nothing without one."""
    rows = {
        name: table["rows"]
        for summary in summaries
        for name, table in summary["data"].items()
        if {BRANCH, RELEASED} <= table["rows"].keys()
    }
    if not rows:
        return ""
    less = {
        name: [found[BRANCH][role]["mean"] - found[RELEASED][role]["mean"] for role in ("source", "target")]
        for name, found in rows.items()
    }
    within = sum(min(both) >= -GOAL for both in less.values())
    lines = [
        "### One branch alone",
        "",
        "Dice points of the released model's target branch less those of the whole (`--network target_branch` of "
        "`crossprobe predict` and `export`), on test patients, means over seeds: within "
        f"{100 * GOAL:g} on both probes, or better, in {within} of {len(less)} data sets. Worst on the labelled probe "
        f"{100 * min(both[0] for both in less.values()):+.1f}, on the unlabelled one "
        f"{100 * min(both[1] for both in less.values()):+.1f}.",
        "",
        "| data | labelled probe | unlabelled probe |",
        "| --- | --- | --- |",
        *(f"| {name} | {' | '.join(f'{100 * found:+.1f}' for found in both)} |" for name, both in less.items()),
    ]
    return "\n".join([*lines, ""])
