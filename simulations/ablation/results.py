"""docs/results.md and the README's numbers, from what runs left: `python -m simulations.ablation.results docs/results`.

The folder holds one summary.json a run, under the run's name, `ablation/` with what `crossprobe ablate --publish` put
there, and what modules of `simulations.ablation` wrote, each in a folder: `between/`, `cross-fitted/`, `heads/`,
`ranking/` and `source-only/`. `notes.md` has the words between the numbers. No number of the page is typed in by hand.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from common.errors import RunError
from common.files import PUBLIC, write_atomically
from common.metric_name import PREDICTORS
from common.options import only
from simulations.ablation.alone import alone
from simulations.ablation.page import detectable, is_population, overview, points, population
from simulations.ablation.page import section as ablation_section
from simulations.ablation.random_effects import LEAST_PAIRS, of_a_run, random_effects, together
from simulations.ablation.sections import beside, cross_fitted, heads, ranked, source_only
from simulations.ablation.tally import BASELINE, RELEASED
from simulations.publication import insert

#: The studies that the README runs, on real images and on phantoms; all others are earlier forms of the method.
CURRENT = (
    "pretrained.yaml",
    "pretrained-half.yaml",
    "self-training.yaml",
    "self-training-96.yaml",
    "self-training-128.yaml",
    "phantom.yaml",
    "phantom-artefacts.yaml",
    "phantom-self-training.yaml",
    "phantom-self-training-long.yaml",
    "demo.yaml",
)
#: Of these, those whose network begins with public weights.
PUBLIC_WEIGHTS = CURRENT[:2]
#: Those that the README says to take: on real images, and in the demo.
TAKEN = ("pretrained.yaml", "demo.yaml")
#: Ablations that train the released model on the same patients with the same seeds as another one does.
REPEATED = ("ablation-rivals-mean-teacher",)
#: The two scanners in a data set's name.
SCANNERS = re.compile(r"([^-]+)-to-([^-]+)$")
#: A run that ends further below its baseline does harm (docs/preregistration.md).
HARM = 0.005


def page(folder: Path) -> str:
    """Return the page as Markdown.

    Raises:
        RunError: if the folder holds no summaries or no notes.
    """
    notes = folder / "notes.md"
    runs, ablations = _read(folder), _read(folder / "ablation")
    if not (runs or ablations) or not notes.exists():
        raise RunError(f"{folder} needs notes.md and a summary.json of each run, copied under the run's name.")
    summaries = list(ablations.values())
    sections = [
        population(summary) if is_population(summary) else ablation_section(summary, f"{folder.name}/ablation")
        for summary in summaries
    ]
    sections += [section(name, summary) for name, summary in runs.items()]
    written_by = {
        "between": beside,
        "source-only": source_only,
        "cross-fitted": cross_fitted,
        "heads": heads,
        "ranking": ranked,
    }
    for kind, written in written_by.items():
        if found := list(_read(folder / kind).values()):
            sections.append(written(found))
    current, earlier = by_form(summaries)
    if earlier:
        sections.insert(0, f"### Earlier forms of the method\n\n{overview(earlier)}")
    if branches := alone(current):
        sections.insert(0, branches)
    if together := real_pairs(current):
        sections.insert(0, together)
    if current:
        sections.insert(0, f"## Ablations in short\n\nDice % on the target's test patients.\n\n{overview(current)}")
    head = "<!-- written by `python -m simulations.ablation.results docs/results`; edit notes.md there instead -->\n"
    return head + notes.read_text(encoding="utf-8").rstrip() + "\n\n" + "\n".join(sections)


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what each JSON file of a folder holds, by the file's name without its ending, in order."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def by_form(summaries: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the ablations of the method as it is, in the order of `CURRENT`, and those of its earlier forms.

    What was trained again stands in neither.
    """
    once = [summary for summary in summaries if summary["name"] not in REPEATED]
    current = [summary for study in CURRENT for summary in once if summary["study"] == study]
    return current, [summary for summary in once if summary["study"] not in CURRENT]


def headline(summaries: Sequence[dict[str, Any]]) -> str:
    """Return what the README shows of the ablations: the studies to take, and all real pairs together."""
    current, _ = by_form(summaries)
    return f"{overview([summary for summary in current if summary['study'] in TAKEN])}\n{real_pairs(current)}"


def real_pairs(summaries: Sequence[dict[str, Any]]) -> str:
    """Return the section on the real probes that the method as it is was measured on, or nothing where there are none.

    A row for each pair of scanners, of all studies and of those of `PUBLIC_WEIGHTS`, and their pool.
    """
    found = _by_scanners(summaries)
    if not found:
        return ""
    public = _by_scanners([summary for summary in summaries if summary["study"] in PUBLIC_WEIGHTS])
    lines = [
        "### Real pairs together",
        "",
        f"Dice points, released model less baseline, of {sum(map(len, found.values()))} data sets, which are "
        f"{len(found)} pairs of scanners: data sets of one pair differ in study, labels and draw, and share test "
        "patients. Patients are counted once for each data set, and gain by the mean of its runs.",
        "",
        "| labelled -> unlabelled probe | data sets | runs | mean | of single data sets | runs above their baseline "
        f"| more than {100 * HARM:g} points below | patients who gain | Dice below 50 %: baseline, release | labelled "
        f"probe, mean | runs more than {100 * HARM:g} below there |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for which, groups in (("", found), (", public weights alone", public)):
        for pair, tables in groups.items():
            lines.append(f"| {pair}{which} | {_counted(tables)} |")
    taken = _by_scanners([summary for summary in summaries if summary["study"] in TAKEN])
    lines += ["", _pooled(found, "all of these studies"), "", _pooled(taken, f"`{TAKEN[0]}` alone")]
    shared = "Pairs with the same unlabelled scanner share its test patients, and are taken for independent."
    return "\n".join([*lines, "", shared, ""])


def _by_scanners(summaries: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each data set of real probes with a released model, by labelled and unlabelled scanner."""
    found: dict[str, list[dict[str, Any]]] = {}
    for summary in summaries:
        for name, table in summary["data"].items():
            if table["same_patients"] and RELEASED in table["rows"] and (pair := SCANNERS.search(name)):
                found.setdefault(" -> ".join(pair.groups()), []).append(table["rows"])
    return found


def _counted(tables: Sequence[dict[str, Any]]) -> str:
    gains, costs = ([rows[RELEASED][role]["difference"] for rows in tables] for role in ("target", "source"))
    failed = [mean(rows[row]["target"]["failing"] for rows in tables) for row in (BASELINE, RELEASED)]
    means = [100 * own["mean"] for own in gains]
    runs, at_source = ([run for own in differences for run in own["seeds"]] for differences in (gains, costs))
    cells = [
        len(tables),
        len(runs),
        f"{mean(means):+.1f}",
        f"{min(means):+.1f} to {max(means):+.1f}",
        f"{sum(run > 0 for run in runs)} of {len(runs)}",
        sum(run < -HARM for run in runs),
        f"{100 * sum(own['gaining'] for own in gains) / sum(own['patients'] for own in gains):.0f} %",
        ", ".join(f"{100 * share:.0f} %" for share in failed),
        f"{100 * mean(own['mean'] for own in costs):+.1f}",
        sum(run < -HARM for run in at_source),
    ]
    return " | ".join(map(str, cells))


def _pooled(found: Mapping[str, Sequence[dict[str, Any]]], which: str) -> str:
    """Return the sentence on all pairs of scanners, each taken once.

    Args:
        which: studies, as they are named to the reader.
    """
    if len(found) < LEAST_PAIRS:
        return f"Of {which} there are too few pairs of scanners to be pooled."
    words = []
    for role, probe in (("target", "unlabelled"), ("source", "labelled")):
        by_pair = [[rows[RELEASED][role]["difference"] for rows in tables] for tables in found.values()]
        run = of_a_run([own for differences in by_pair for own in differences])
        pooled = random_effects(*zip(*(together(differences, run) for differences in by_pair), strict=True))
        words.append(
            f"{points(asdict(pooled))} on the {probe} probe, where a next pair may expect {100 * pooled.next_low:+.1f} "
            f"to {100 * pooled.next_high:+.1f}, and a single training run deviates by {100 * run**0.5:.1f}"
        )
    return (
        f"Of {which}, over {len(found)} pairs of scanners, each taken once (random effects, 95 %, "
        f"`simulations/ablation/random_effects.py`): {'; '.join(words)}."
    )


def section(name: str, summary: dict[str, Any]) -> str:
    """Return one run's table, with command, seed, hardware, time and bytes."""
    score = summary["label_free_score"]
    megabytes = {way: f"{count / 1e6:.0f} MB" for way, count in summary["bytes"].items()}
    patients = ", ".join(f"{site} {count}" for site, count in summary["patients"].items())
    lines = [
        f"## {name}",
        "",
        f"`{summary['command']}`",
        "",
        f"Seed {summary['seed']}; {summary['hardware']}; {summary['wall_s'] / 60:.1f} minutes in all, the baseline's "
        f"training included; {megabytes['to_sites']} to sites, {megabytes['from_sites']} from sites; training "
        f"patients: {patients}.",
        "",
        "| site | predictor | Dice % [95 %] | difference to baseline [95 %] | IoU % | HD95 (mm, or pixels without "
        "spacing) | calibration error % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for site, dice in summary["dice"].items():
        for predictor in (p for p in PREDICTORS if p in dice):
            lines.append(f"| {site} ({summary['roles'][site]}) | {_row(summary, site, predictor)} |")
    for site, role in summary["roles"].items():
        gain = summary["difference_to_baseline"].get(site, {}).get("infusion")
        if role == "target" and gain:
            low, high = gain["ci95"]
            count = summary["dice"][site]["infusion"]["patients"]
            lines += ["", f"{site}: {detectable(count, {'low': low, 'high': high})}"]
    correlation = score["rank_correlation_with_source_val_dice"]
    relation = (
        "not validated (too few rounds with both numbers)"
        if correlation is None
        else f"{correlation:+.2f} over {len(score['rounds'])} rounds"
    )
    lines += [
        "",
        f"Released: the model that sites received in round {summary['released_round']}. Rank correlation of the "
        f"label-free score with Dice on the sources' validation patients: {relation}.",
        "",
    ]
    return "\n".join(lines)


def _row(summary: dict[str, Any], site: str, predictor: str) -> str:
    dice = summary["dice"][site][predictor]
    low, high = (100 * x for x in dice["ci95"])
    gain = summary["difference_to_baseline"].get(site, {}).get(predictor)
    difference = ""
    if gain:
        below, above = (100 * x for x in gain["ci95"])
        difference = f"{100 * gain['mean']:+.1f} [{below:+.1f}, {above:+.1f}]"
    return (
        f"{predictor} | {100 * dice['mean']:.1f} [{low:.1f}, {high:.1f}], {dice['patients']} patients | {difference} | "
        f"{100 * summary['iou'][site][predictor]['mean']:.1f} | {summary['hd95'][site][predictor]['mean']:.2f} | "
        f"{100 * summary['calibration_error'][site][predictor]['mean']:.1f}"
    )


def write_page(folder: Path) -> Path:
    """Write the page beside its folder and return it."""
    target = folder.with_suffix(".md")
    write_atomically(target, page(folder).encode(), mode=PUBLIC)
    return target


def main(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of notes, summaries and ablations")] = Path(
        "docs/results"
    ),
) -> None:
    """Write DIR.md out of what was published into DIR, and the README's part of it."""
    print(write_page(folder))
    insert(Path("README.md"), "results", headline(list(_read(folder / "ablation").values())))


if __name__ == "__main__":
    only(main, "python -m simulations.ablation.results docs/results")
