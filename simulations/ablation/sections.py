"""The sections of docs/results.md on what single commands of `simulations.ablation` measured, each from its figures."""

from collections.abc import Sequence
from typing import Any

from simulations.ablation.page import points
from simulations.ablation.verdict import judged


def beside(found: Sequence[dict[str, Any]]) -> str:
    """Return the section on a study beside the baseline of another one, see `simulations.ablation.between`."""
    lines = [
        "## Beside the baseline of another study",
        "",
        "Dice % on test patients, of models that were trained on the same labelled patients; the difference is by "
        "patient, in brackets its 95 % interval over patients, and over patients and training runs.",
        "",
        "| pair | seeds | probe | model | its Dice | the other's baseline | difference | over runs too | "
        "range over seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for own in found:
        trained = ", ".join(map(str, own["seeds"]))
        for pair, by_role in own["pairs"].items():
            for role, probe in (("target", "unlabelled"), ("source", "labelled")):
                for row, numbers in by_role[role].items():
                    gain = numbers["difference"]
                    one, other = (f"{100 * dice:.1f}" for dice in numbers["dice"])
                    low, high = (gain[key] for key in ("run_low", "run_high"))
                    runs = "" if low is None else f"[{100 * low:+.1f}, {100 * high:+.1f}]"
                    seeds = f"{100 * min(gain['seeds']):+.1f} to {100 * max(gain['seeds']):+.1f}"
                    cells = (pair, trained, probe, row, one, other, points(gain), runs, seeds)
                    lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for own in found:
        seeds = ", ".join(map(str, own["seeds"]))
        studies = f"{own['studies'][0]}, less the baseline of {own['studies'][1]}"
        lines.append(f"- `{own['command']}`: {studies}; seeds {seeds}; {own['hardware']}")
    return "\n".join([*lines, ""])


def source_only(courses: Sequence[dict[str, Any]]) -> str:
    """Return the section on models of a labelled probe alone, see `simulations.ablation.source_only`."""
    sites = list(dict.fromkeys(row["site"] for own in courses for row in own["rows"]))
    lines = [
        "## A labelled probe alone",
        "",
        "Dice % on labelled patients that the training does not see; in brackets without small parts of a prediction. "
        "The first scanner is the one trained on. No target's labels have a part in it.",
        "",
        f"| artefacts | seed | step | weights | {' | '.join(sites)} |",
        f"| --- | --- | --- | --- |{' --- |' * len(sites)}",
    ]
    for own in courses:
        measured = {(row["step"], row["weights"], row["site"]): row for row in own["rows"]}
        for step, weights in dict.fromkeys(key[:2] for key in measured):
            found = [measured[step, weights, site] for site in sites]
            cells = [f"{100 * row['dice']:.1f} ({100 * row['without_small_parts']:.1f})" for row in found]
            lines.append(f"| {own['artefacts']:g} | {own['seed']} | {step} | {weights} | {' | '.join(cells)} |")
    lines.append("")
    for own in courses:
        note = f"; {own['note']}" if "note" in own else ""
        lines.append(f"- `{own['command']}`: {own['cpu_minutes']} minutes on {own['hardware']}{note}")
    lines.append("")
    return "\n".join(lines)


def cross_fitted(bounds: Sequence[dict[str, Any]]) -> str:
    """Return the section on oracles in a method's own form, see `simulations.ablation.cross_fitted`."""
    lines = [
        "## The last stage with true masks",
        "",
        "Dice % on a target's test patients. The oracle: each is measured by a model whose last stage had true masks "
        "of the other folds in the place of pseudo-labels. A bound; it chose nothing. The gap is the oracle less the "
        "baseline, the share closed the method less the baseline, of it, where the gap is clear of zero; intervals are "
        "over patients, of one training.",
        "",
        "| pair | study | seed | folds | patients with masks | first branch | baseline | method | oracle | gap [95 %] "
        "| closed % [95 %] |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for own in bounds:
        cells = [" -> ".join(own["pair"]), own["study"], own["seed"], own["folds"], own["patients"]]
        rows = ("first branch", "baseline", "method", "oracle")
        cells += [f"{100 * own['dice'][row]:.1f}" if row in own["dice"] else "" for row in rows]
        cells.append(points(own["gap"]) if "gap" in own else "")  # the oldest one was measured without a baseline
        shown = "gap" in own and own["gap"]["low"] > 0  # of a gap that may be none, a share means nothing
        cells.append("{:.0f} [{:.0f}, {:.0f}]".format(*(100 * x for x in own["closed"].values())) if shown else "")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", *(f"- `{own['command']}`: {own['hardware']}" for own in bounds), ""])


def ranked(pools: Sequence[dict[str, Any]]) -> str:
    """Return the section on scores that need no label of the target, see `simulations.ablation.ranking`."""
    pairs = {f"{own['source']} to {target}": judged(rows) for own in pools for target, rows in own["pairs"].items()}
    lines = [
        "## Scores without labels",
        "",
        "A pool of models on each pair of probes, some of them failures planted on purpose. Of each score: the area "
        "under the ROC curve of telling the failures from the honest models, the rank correlation with the true Dice "
        "among the honest ones, and the regret, how many Dice points the model that it picks among all is below the "
        "best honest one.",
        "",
        f"| score | {' | '.join(pairs)} |",
        f"| --- |{' --- |' * len(pairs)}",
    ]
    first = next(iter(pairs.values()))
    for score in first["scores"]:
        found = [own["scores"][score] for own in pairs.values()]
        cells = [f"{x['auroc']:.2f}, {x['rank_correlation']:+.2f}, {100 * x['regret']:.1f}" for x in found]
        lines.append(f"| {score} | {' | '.join(cells)} |")
    for name, key in (("the longest trained", "regret_of_longest"), ("an honest model at random", "regret_of_chance")):
        lines.append(f"| {name} | {' | '.join(f'{100 * own[key]:.1f}' for own in pairs.values())} |")
    lines.append("")
    for name, own in pairs.items():
        low, high = (100 * dice for dice in own["dice"])
        vain = f"; planted without harm: {'; '.join(own['harmless'])}" if own["harmless"] else ""
        lines.append(
            f"- {name}: {own['honest']} honest models from {low:.1f} to {high:.1f} % (best: {own['best']}), "
            f"{own['failures']} failures{vain}"
        )
    for own in pools:
        lines.append(f"- `{own['command']}`: {own['cpu_minutes']} minutes of a processor, {own['hardware']}")
    return "\n".join([*lines, ""])


def heads(found: Sequence[dict[str, Any]]) -> str:
    """Return the section on infusion heads that learnt on a third probe, see `simulations.ablation.heads`."""
    lines = [
        "## An infusion head that learnt on a third probe",
        "",
        "Dice % on a target's test patients, of the same two branches under different weights: fixed as the study "
        "says, of a head that learnt on labelled patients of a scanner that neither branch has seen, and the best "
        "single weight of each image by its true mask. Differences are to the fixed share, by patient, of one training "
        "of branches and heads.",
        "",
        "| pair | third probe | seed | source branch's share | weights | Dice % | less the fixed share [95 %] |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for own in found:
        pair = [" -> ".join(own["pair"]), own["other"], own["seed"], f"{own['share']:g}"]
        for name, dice in own["dice"].items():
            gain = points(own["difference"][name]) if name in own["difference"] else ""
            lines.append(f"| {' | '.join(map(str, (*pair, name, f'{100 * dice:.1f}', gain)))} |")
    return "\n".join([*lines, "", *(f"- `{own['command']}`: {own['hardware']}" for own in found), ""])
