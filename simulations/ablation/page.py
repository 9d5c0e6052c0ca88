"""An ablation as Markdown tables and SVG charts, for docs/results.md."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from common.files import PUBLIC, write_atomically
from server.report.charts import LETTER_WIDTH, Interval, axis_over, interval_chart
from simulations.ablation.comparison import DETECTABLE
from simulations.ablation.tally import AVERAGE, BASELINE, FAILED, ORACLE, PAPER, RELEASED
from simulations.publication import write_figures

#: A chart file stands alone: it brings the few colours that it needs, readable on white and on dark.
STYLE = (
    "<style>text{font:12px sans-serif;fill:#777}.grid{stroke:#8884}.reference{stroke:#777;stroke-dasharray:3 3}"
    ".whisker{stroke:#2a78b8;stroke-width:2}.dot{fill:#2a78b8}.whisker.oracle{stroke:#999}.dot.oracle{fill:#999}"
    "</style>"
)

#: Variants whose training sees no image of the target.
BLIND = ("baseline", "plain-baseline", "short-baseline", "short-two-baselines", "two-baselines")


def chart(name: str, table: dict[str, Any]) -> str:
    """Return the differences to the baseline on the target, in Dice points, as an SVG document."""
    rows = []
    for row, numbers in table["rows"].items():
        difference = numbers["target"].get("difference")
        if difference:
            kind = "oracle" if numbers["variant"] == "oracle" else "method"
            rows.append(Interval(row, kind, *(100 * difference[key] for key in ("mean", "low", "high"))))
    axis = axis_over([0.0, *(v for row in rows for v in (row.low, row.high))])
    title = f"{name}: difference to the baseline, Dice points"
    longest = max((len(row.label) for row in rows), default=0)
    svg = str(interval_chart(rows, axis, title=title, reference=0.0, labels=int(LETTER_WIDTH * longest)))
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{STYLE}", 1)


def overview(summaries: Sequence[dict[str, Any]]) -> str:
    """Return one line for each data set of all ablations: baseline, the paper's recipe, the released model.

    A population of devices is left out: it has a table of its own, see `population`.
    """
    lines = [
        "| data | baseline | paper's recipe | all stages | all stages - baseline [95 % over patients and runs; * "
        "patients alone] | range over seeds | the same on the labelled probe | command |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for summary in summaries:
        if is_population(summary):
            continue
        for name, table in summary["data"].items():
            rows = table["rows"]
            if RELEASED not in rows:
                continue
            released = rows[RELEASED]
            cells = [
                name,
                *(f"{100 * rows[row]['target']['mean']:.1f}" if row in rows else "" for row in (BASELINE, PAPER)),
                f"{100 * released['target']['mean']:.1f}",
                over_runs(released["target"]["difference"]),
                _spread(released["target"]["difference"]["seeds"]),
                over_runs(released["source"]["difference"]),
                f"`{summary['command']}`",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def section(summary: dict[str, Any], folder: str) -> str:
    """Return an ablation's section: for each data set the chart, the table and the questions; see also `population`.

    Args:
        folder: of the charts, as the page links it.
    """
    lines = [*_head(summary), ""]
    for name, table in summary["data"].items():
        lines += _data_set(name, table, folder, len(summary["seeds"]))
    return "\n".join(lines)


def is_population(summary: dict[str, Any]) -> bool:
    """Return whether an ablation's data sets are devices of a population, which count together."""
    return all(re.fullmatch(r"drawn-\d+", name) for name in summary["data"])


def population(summary: dict[str, Any]) -> str:
    """Return the section of an ablation over a population: a line for each device, and how they are distributed."""
    *head, made_by = _head(summary)
    lines = [
        *head,
        f"{made_by} Intervals are over patients.",
        "",
        "| device | baseline, Dice % | all stages, Dice % | difference [95 %] | the same on the labelled probe |",
        "| --- | --- | --- | --- | --- |",
    ]
    gains = {}
    for name, table in summary["data"].items():
        if RELEASED not in table["rows"]:
            lines.append(f"| {name} | {100 * table['rows'][BASELINE]['target']['mean']:.1f} |  |  |  |")
            continue
        released = table["rows"][RELEASED]
        gains[name] = released["target"]["difference"]
        dice = (f"{100 * table['rows'][row]['target']['mean']:.1f}" for row in (BASELINE, RELEASED))
        cells = [name, *dice, points(gains[name]), points(released["source"]["difference"])]
        lines.append(f"| {' | '.join(cells)} |")
    if not gains:
        return "\n".join([*lines, ""])
    means = sorted(100 * gain["mean"] for gain in gains.values())
    worst = min(gains, key=lambda name: gains[name]["mean"])
    clear = sum(gain["low"] > 0 for gain in gains.values())
    below = sum(gain["high"] < 0 for gain in gains.values())
    lines += [
        "",
        f"Of {len(gains)} devices the baseline is beaten clear of zero on {clear} and lost to on {below}. The "
        f"differences: median {median(means):+.1f} points, from {means[0]:+.1f} to {means[-1]:+.1f}; the worst is "
        f"{worst}.",
        "",
    ]
    return "\n".join(lines)


def _head(summary: dict[str, Any]) -> list[str]:
    """Return the first lines of an ablation's section: its name, its command, and what it was made with."""
    return [
        f"## Ablation: {summary['name']}",
        "",
        f"`{summary['command']}`",
        "",
        f"Method: `{summary['study']}`; seeds {', '.join(map(str, summary['seeds']))}; {summary['hardware']}; "
        f"{_versions(summary)}.",
    ]


def _versions(summary: dict[str, Any]) -> str:
    """Return which code trained and measured: one version, or a warning where a table mixes several."""
    versions = [f"`{digest[:12]}`" for digest in summary.get("code", ())]
    if not versions:
        return "version of the code not recorded, see the notes above"
    return f"code {versions[0]}" if len(versions) == 1 else f"**mixed versions of the code: {', '.join(versions)}**"


def _data_set(name: str, table: dict[str, Any], folder: str, seeds: int) -> list[str]:
    closed = table["gap"].get("closed", {})
    count = table["patients"]
    whom = (
        f"{count} test patients, the same for each seed" if table["same_patients"] else f"{count} test patients in all"
    )
    lines = [
        f"### {name}",
        "",
        f"![differences to the baseline]({folder}/{name}.svg)",
        "",
        f"Target: {whom}; {seeds} seed(s). Intervals and p are over patients, for these trained models: another "
        "training run may differ by more, see the column of the seeds' means. p: signed-rank test, before and after "
        "Holm's correction over the variants, of which each has one row tested. Minutes and megabytes: "
        "of one seed (median), its training alone.",
        "",
        "| row | target Dice % | difference [95 %] | seeds | p | gap closed | labelled probe: difference | min | MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row, numbers in table["rows"].items():
        target, source = numbers["target"], numbers["source"]
        cells = [row, f"{100 * target['mean']:.1f}"]
        if "difference" in target:
            cells += [
                points(target["difference"]),
                _spread(target["difference"]["seeds"]),
                f"{target['difference']['p']:.2g}, {numbers['p_holm']:.2g}" if "p_holm" in numbers else "",
                f"{100 * closed[row]:.0f} %" if row in closed else "",
                points(source["difference"]),
            ]
        else:
            cells += ["", f"Dice {_spread(target['seeds'], sign='')}", "", "", f"Dice {100 * source['mean']:.1f}"]
        cells += [f"{numbers['minutes']:.1f}", f"{numbers['bytes'] / 1e6:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    if table["gap"]:
        lines += ["", _gap(table)]
    released = table["rows"].get(RELEASED, {}).get("target")
    if released:
        gain = released["difference"]
        lines += [
            "",
            f"Of the released model: {gain['gaining']} of {count} patients gain; the median of their differences is "
            f"{100 * gain['median']:+.1f} points. {detectable(count, gain)}",
        ]
        if gain.get("run_deviation") is not None:
            low, high = 100 * gain["run_low"], 100 * gain["run_high"]
            lines += [
                "",
                f"The difference of single training runs deviates by {100 * gain['run_deviation']:.1f} points; over "
                f"patients and runs together its 95 % interval is [{low:+.1f}, {high:+.1f}].",
            ]
    failing = {
        row: numbers["target"]["failing"] for row, numbers in table["rows"].items() if "failing" in numbers["target"]
    }
    if failing:  # tables published before there was this number have none
        shares = ", ".join(f"{row} {100 * share:.0f} %" for row, share in failing.items())
        lines += ["", f"Target patients with a Dice below {100 * FAILED:.0f} %, mean over seeds: {shares}."]
    average = table["rows"].get(AVERAGE, {}).get("target")
    if average and table["courses"]:
        lines += ["", _courses(table["courses"], average["seeds"])]
    if not table["contrasts"]:
        return [*lines, ""]
    lines += ["", "| question | difference on the target [95 %] | seeds |", "| --- | --- | --- |"]
    for asked in table["contrasts"]:
        answer = asked["difference"]
        lines.append(f"| {asked['row']} against {asked['against']} | {points(answer)} | {_spread(answer['seeds'])} |")
    return [*lines, ""]


def _gap(table: dict[str, Any]) -> str:
    """Return the sentence on the gap to the oracle, from the baseline and from the best row of `BLIND`."""
    dice = {row: numbers["target"]["mean"] for row, numbers in table["rows"].items()}
    text = f"Gap between baseline and oracle: {100 * table['gap']['points']:.1f} points."
    blind = [row for row, numbers in table["rows"].items() if numbers["variant"] in BLIND]
    strongest = max(blind, key=dice.__getitem__)
    left = dice[ORACLE] - dice[strongest]
    if strongest == BASELINE or left <= 0 or RELEASED not in dice:
        return text
    share = (dice[RELEASED] - dice[strongest]) / left
    return (
        f"{text} From the best row that sees no image of the target ({strongest}) it is {100 * left:.1f}, of which the "
        f"released model closes {100 * share:.0f} %."
    )


def detectable(patients: int, difference: Mapping[str, Any]) -> str:
    """Return the sentence on the smallest difference in Dice that can be shown, from an interval of one.

    Args:
        difference: `low` and `high` over patients, and `run_low` and `run_high` over runs too where there are several.
    """
    several = difference.get("run_low") is not None
    trained = "these training runs" if several else "one training"
    low, high = (difference[f"run_{end}" if several else end] for end in ("low", "high"))
    return (
        f"With {patients} patients and {trained} a true difference of about {100 * DETECTABLE * (high - low) / 2:.1f} "
        f"points would be found four times out of five ({DETECTABLE} times half the released model's interval)."
    )


def _courses(courses: list[list[float]], released: list[float]) -> str:
    """Return how each seed's rounds of `refine` went, and how far the release's average is from their best."""
    runs = "; ".join(", ".join(f"{100 * dice:.1f}" for dice in course) for course in courses)
    gaps = [100 * (max(course) - dice) for course, dice in zip(courses, released, strict=True)]
    behind = ", ".join(f"{round(gap, 1) + 0.0:.1f}" for gap in gaps)  # + 0.0: no minus before a zero
    return (
        f"Target Dice % of the branches' average after each round of `refine`, seed by seed: {runs}. The release, "
        f"picked without labels of this probe, is by the same average behind the best of them by {behind}."
    )


def points(difference: dict[str, Any]) -> str:
    """Return a difference with its interval, in Dice points."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * difference[key] for key in ("mean", "low", "high")))


def over_runs(difference: dict[str, Any]) -> str:
    """Return a difference with its interval over patients and training runs, or with a star over patients alone."""
    if difference.get("run_low") is None:
        return f"{points(difference)} *"
    return points(difference | {"low": difference["run_low"], "high": difference["run_high"]})


def _spread(seeds: list[float], sign: str = "+") -> str:
    low, high = 100 * min(seeds), 100 * max(seeds)
    return f"{low:{sign}.1f} to {high:{sign}.1f}"


def publish(summary: dict[str, Any], folder: Path) -> None:
    """Put an ablation's summary and charts where docs/results.md is made from."""
    published = folder / "ablation"
    write_figures(published / f"{summary['name']}.json", summary)
    if is_population(summary):
        return
    for name, table in summary["data"].items():
        write_atomically(published / f"{name}.svg", (chart(name, table) + "\n").encode(), mode=PUBLIC)


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print each data set's rows for the person at the terminal."""
    for name, table in summary["data"].items():
        closed = table["gap"].get("closed", {})
        view = Table(title=f"{name}: Dice on the target's test patients, %")
        for column in ("row", "Dice", "difference to baseline [95 %]", "seeds", "gap closed"):
            view.add_column(column, justify="left" if column == "row" else "right")
        for row, numbers in table["rows"].items():
            difference = numbers["target"].get("difference")
            view.add_row(
                row,
                f"{100 * numbers['target']['mean']:.1f}",
                points(difference) if difference else "",
                _spread(difference["seeds"]) if difference else "",
                f"{100 * closed[row]:.0f} %" if difference and row in closed else "",
            )
        console.print(view)
