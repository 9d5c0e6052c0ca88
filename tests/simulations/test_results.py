"""The results page: every number comes from a committed summary."""

import json
from pathlib import Path

import pytest

from common.errors import RunError
from simulations.ablation.alone import BRANCH, alone
from simulations.ablation.results import HARM, REPEATED, by_form, headline, page, real_pairs
from simulations.ablation.tally import RELEASED

DOCS = Path(__file__).parents[2] / "docs"


def test_the_committed_page_is_what_the_committed_summaries_give() -> None:
    assert (DOCS / "results.md").read_text(encoding="utf-8") == page(DOCS / "results")


def test_every_table_stands_with_command_seed_hardware_and_time() -> None:
    text = page(DOCS / "results")
    files = sorted((DOCS / "results").glob("*.json"))
    assert files
    for file in files:
        summary = json.loads(file.read_text(encoding="utf-8"))
        assert f"## {file.stem}\n\n`{summary['command']}`\n\nSeed {summary['seed']}; {summary['hardware']}; " in text


def test_the_readme_shows_the_ablations_as_they_were_published() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    _, begin, rest = readme.partition("<!-- results, of docs/results.md -->\n")
    table, end, _ = rest.partition("\n<!-- end -->")
    assert begin
    assert end
    summaries = [json.loads(file.read_text("utf-8")) for file in sorted((DOCS / "results" / "ablation").glob("*.json"))]
    assert summaries
    current, earlier = by_form(summaries)
    assert current
    assert earlier
    assert table == headline(summaries).rstrip(), "run `python -m simulations.ablation.results docs/results`"


def test_pairs_of_real_probes_are_pooled_each_once() -> None:
    summaries = [json.loads(file.read_text("utf-8")) for file in sorted((DOCS / "results" / "ablation").glob("*.json"))]
    current, _ = by_form(summaries)
    text = real_pairs(current)
    real = [summary for summary in current if all(table["same_patients"] for table in summary["data"].values())]
    sets = sum(len(summary["data"]) for summary in real)
    assert f"of {sets} data sets, which are" in text
    rows = [row.split(" | ") for row in text.splitlines() if " -> " in row and "data sets |" not in row]
    every = [row for row in rows if "public weights" not in row[0]]
    assert sum(int(row[1]) for row in every) == sets
    assert f"which are {len(every)} pairs of scanners" in text
    assert f"Of all of these studies, over {len(every)} pairs of scanners, each taken once" in text
    seeds = [x for s in real for t in s["data"].values() for x in t["rows"][RELEASED]["target"]["difference"]["seeds"]]
    assert sum(int(row[2]) for row in every) == len(seeds)
    assert sum(int(row[6]) for row in every) == sum(x < -HARM for x in seeds)
    again = [{**summary, "name": REPEATED[0]} for summary in real]
    assert by_form([*current, *again])[0] == current
    assert real_pairs([summary for summary in current if summary not in real]) == ""  # phantoms alone


def test_a_branch_alone_is_held_against_the_whole_on_both_probes() -> None:
    def table(source: float, target: float) -> dict:
        whole = {"source": {"mean": 0.9}, "target": {"mean": 0.8}}
        return {"rows": {RELEASED: whole, BRANCH: {"source": {"mean": source}, "target": {"mean": target}}}}

    summary = {"data": {"good": table(0.895, 0.83), "bad": table(0.9, 0.785), "baseline alone": {"rows": {}}}}
    text = alone([summary])
    assert "in 1 of 2 data sets. Worst on the labelled probe -0.5, on the unlabelled one -1.5." in text
    assert "| good | -0.5 | +3.0 |" in text
    assert alone([{"data": {"baseline alone": {"rows": {}}}}]) == ""


def test_a_folder_without_summaries_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"needs notes\.md and a summary\.json"):
        page(tmp_path)
