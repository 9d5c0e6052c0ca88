"""report.html: says what the files say, in honest words, and gives nothing away."""

import base64
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from fabricated import SECRET, SOURCE, TARGET, entry, evaluation, fabricate, study_with_baseline
from private import private
from tiny import study as tiny_study

from common.baseline import baseline_of
from common.errors import RunError, StudyError
from common.run_folder import RunFolder
from crossprobe import main
from server.history import SiteRecord
from server.report.charts import axis_over
from server.report.conclusions import average_sentence, score_sentence
from server.report.drawn import Drawn, Example, PatientDice, keep
from server.report.page import render_report
from server.report.summary import write_summary
from server.state import Participant


def page(run: Path) -> str:
    return render_report(run).read_text(encoding="utf-8")


def headline(html: str) -> str:
    found = re.search(r'<p class="headline">(.*?)</p>', html, re.S)
    assert found
    return found[1].replace("&#39;", "'")


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        ((0.061, 0.021, 0.099), "beats the baseline by 6.1 Dice points (95 % interval +2.1 to +9.9)"),
        ((-0.05, -0.09, -0.01), "loses to the baseline by 5.0 Dice points (95 % interval −9.0 to −1.0)"),
        ((0.012, -0.008, 0.032), "+1.2 Dice points, and the 95 % interval −0.8 to +3.2 includes zero"),
        ((0.02, 0.0, 0.04), "includes zero"),
    ],
)
def test_headline_says_what_the_interval_allows(
    tmp_path: Path, difference: tuple[float, float, float], words: str
) -> None:
    html = page(fabricate(tmp_path / "run", evaluated={"east": evaluation(difference)}))
    assert words in headline(html)


def test_headline_counts_several_unlabelled_sites(tmp_path: Path) -> None:
    differences = {"a": (0.06, 0.02, 0.1), "b": (-0.05, -0.09, -0.01), "c": (0.01, -0.01, 0.03)}
    participants = {"north": SOURCE, "d": replace(TARGET, labelled_test=False)} | dict.fromkeys(differences, TARGET)
    html = page(fabricate(tmp_path / "run", participants, {name: evaluation(d) for name, d in differences.items()}))
    assert headline(html).endswith("on 4 unlabelled sites: 1 better, 1 worse, 1 no difference shown, 1 not validated.")


def test_labelled_sites_are_told_apart_from_the_headline(tmp_path: Path) -> None:
    evaluated = {"north": evaluation((-0.02, -0.03, -0.01)), "east": evaluation((0.05, 0.02, 0.08))}
    html = page(fabricate(tmp_path / "run", evaluated=evaluated))
    assert "north" not in headline(html)
    assert "On the labelled site north the difference is −2.0 Dice points (−3.0 to −1.0)." in html


def test_run_without_baseline_is_not_validated_but_shows_dice(tmp_path: Path) -> None:
    html = page(fabricate(tmp_path / "run", evaluated={"east": evaluation(None)}, study=tiny_study()))
    assert headline(html) == "Not validated against a baseline: the run holds no baseline to compare with."
    assert "<b>80.0</b>" in html
    assert "76.0 to 83.0" in html
    assert "reference model" not in html


@pytest.mark.parametrize(
    ("participant", "changes", "reason"),
    [
        (replace(TARGET, labelled_test=False), {}, "no labelled test patients"),
        (TARGET, {}, "its policy lets no Dice be shown (too few test patients, or not allowed)"),
        (
            TARGET,
            {6: {"sites": {"east": SiteRecord("target", "evaluate", "late", "no reply within 5 s")}}},
            "its evaluation did not count: late",
        ),
    ],
)
def test_site_without_results_says_why(
    tmp_path: Path, participant: Participant, changes: dict[int, Any], reason: str
) -> None:
    html = page(fabricate(tmp_path / "run", {"north": SOURCE, "east": participant}, changes=changes))
    assert headline(html) == f"Not validated against a baseline: {reason}."
    assert "No site sent test results" in html


def test_measure_that_a_policy_withholds_hides_no_other(tmp_path: Path) -> None:
    allowed = {key: value for key, value in evaluation(None).items() if "/dice/" not in key}
    html = page(fabricate(tmp_path / "run", evaluated={"east": allowed}, study=tiny_study()))
    assert "lets no Dice be shown" in headline(html)
    assert html.count("<b>80.0</b>") == 8  # IoU and calibration error of four predictors


def test_shares_of_empty_frames_are_shown_in_percent_and_unknown_ones_not_as_none(tmp_path: Path) -> None:
    none = page(fabricate(tmp_path / "none", evaluated={"east": evaluation(None)}, study=tiny_study()))
    assert "No frame had an empty truth" in none
    some = evaluation(None) | {"infusion/empty_truth_share": 0.07, "infusion/empty_prediction_share": 0.29}
    assert ">7 / 29</td>" in page(fabricate(tmp_path / "some", evaluated={"east": some}, study=tiny_study()))
    unknown = {key: value for key, value in evaluation(None).items() if "empty" not in key}
    html = page(fabricate(tmp_path / "unknown", evaluated={"east": unknown}, study=tiny_study()))
    assert "empty truth or" not in html
    assert "with an empty truth" not in html


def test_a_private_run_says_that_its_baseline_is_not_counted(tmp_path: Path) -> None:
    html = " ".join(page(fabricate(tmp_path / "run", study=private())).split())
    assert "Training the baseline is a run of its own and not in this run's epsilon" in html
    assert "epsilon" not in page(fabricate(tmp_path / "open"))


def test_unfinished_run_shows_progress_and_claims_nothing(tmp_path: Path) -> None:
    html = page(fabricate(tmp_path / "run", done=3))
    assert headline(html).startswith("Unfinished: 3 of 7 rounds are done, the next is in stage refine. Not validated")
    assert "Training loss, unlabelled sites" in html
    assert "worked out when the run has finished" in html
    assert 'class="matrix' not in html


def test_run_before_its_first_round_has_a_report(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", {}, done=0)
    RunFolder(run).state.unlink()
    html = page(run)
    assert "Unfinished: 0 of 7 rounds" in html
    assert "No site has enrolled yet." in html


def test_study_of_one_branch_is_not_validated(tmp_path: Path) -> None:
    html = page(fabricate(tmp_path / "run", {"north": SOURCE}, study=baseline_of(tiny_study(), rounds=2)))
    assert headline(html) == "Not validated: the run has no unlabelled site."


def test_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="holds no run"):
        render_report(tmp_path)


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    hostile = '"><script>alert(1)</script>'
    refused = {3: {"sites": {"north": SiteRecord("source", "supervise", "refused", f"{hostile}: no")}}}
    participants = {"north": SOURCE, hostile: TARGET}
    run = fabricate(tmp_path / "run", participants, {hostile: evaluation((0.05, 0.02, 0.08))}, changes=refused)
    picture = Example(hostile, "target", hostile, {hostile: 0.5}, [(hostile, b"png")])
    keep(run, Drawn([picture]))
    html = page(run)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 5


def test_many_sites_with_long_names_are_all_shown(tmp_path: Path) -> None:
    names = [f"{'department-of-paediatric-radiology-' + str(i):x<63}" for i in range(30)]
    participants = {name: SOURCE if i % 3 == 0 else TARGET for i, name in enumerate(names)}
    html = page(fabricate(tmp_path / "run", participants, {name: evaluation((0.05, 0.02, 0.08)) for name in names}))
    assert all(f'<th scope="row">{name}' in html for name in names)
    assert headline(html).endswith("on 20 unlabelled sites: 20 better.")


def test_unlabelled_sites_come_first(tmp_path: Path) -> None:
    participants = {"a": SOURCE, "z": TARGET, "b": SOURCE, "y": TARGET}
    html = page(
        fabricate(tmp_path / "run", participants, {name: evaluation((0.05, 0.02, 0.08)) for name in participants})
    )
    assert re.findall(r"<figure><h3>(\w) ", html) == ["y", "z", "a", "b"]
    rows = re.findall(r'<th scope="row">(\w)<', html)
    assert rows[:6] == ["y", "z", "y", "z", "a", "b"]  # the conclusions, then the matrix


def test_page_is_self_contained_and_its_charts_are_whole(tmp_path: Path) -> None:
    html = page(fabricate(tmp_path / "run", evaluated={"east": evaluation((0.05, 0.02, 0.08))}))
    assert not re.search(r"https?:|<script|<link|@import|url\(", html)
    charts = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(charts) == 4  # Dice of one site, score, and the losses of both roles
    for chart in charts:
        ElementTree.fromstring(chart)
    assert "<title>CrossProbe: tiny</title>" in html


def test_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", evaluated={"east": evaluation((0.05, 0.02, 0.08))})
    assert page(run) == page(run)


def test_no_path_of_the_coordinator_is_shown(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", evaluated={"east": evaluation((0.05, 0.02, 0.08))})
    assert SECRET in RunFolder(run).study.read_text()
    html = page(run)
    assert SECRET not in html
    assert str(tmp_path) not in html


def test_replies_that_did_not_count_and_undone_rounds_are_listed(tmp_path: Path) -> None:
    late = SiteRecord("target", "self_train", "late", "no reply within 5 s", bytes_to=500_000)
    good = entry("source", "supervise", 2, {})
    changes: dict[int, dict[str, Any]] = {
        2: {"sites": {"north": good, "east": late}},
        3: {"sites": {"north": good, "east": late}, "rolled_back": True},
    }
    html = page(fabricate(tmp_path / "run", changes=changes))
    assert '<td class="word">late</td><td>no reply within 5 s</td><td>2–3</td>' in html
    assert "Undone because score or validation Dice fell (roll-back): round 3." in html
    chart = re.search(r'<svg[^>]*aria-label="Label-free score.*?</svg>', html, re.S)
    assert chart
    assert chart[0].count('class="undone"') == 2  # on the score's curve and on that of the Dice
    assert '<td class="n" data-label="late">2</td>' in html


def test_release_is_explained_by_score_and_tolerance(tmp_path: Path) -> None:
    html = page(fabricate(tmp_path / "run"))
    assert (
        "received in round 3, the latest\nwhose label-free score (63.0 %) and whose Dice on the validation patients of "
        "labelled sites (65.0 %) is at most 5 points below the best of the models released before it." in html
    )
    assert "Released if it ended now" in page(fabricate(tmp_path / "short", done=4))


def test_a_sentence_says_where_infusion_equals_average(tmp_path: Path) -> None:
    results = evaluation((0.05, 0.02, 0.08))
    untrained = page(fabricate(tmp_path / "run", evaluated={"east": results}))  # round 3 comes before `infuse`
    assert "Infusion equals average here: no round before the released one trained the infusion head" in untrained
    summary = {"dice": {"east": {"average": {"mean": 0.8}, "infusion": {"mean": 0.8002}}}}
    assert "to a tenth of a Dice point at every site" in average_sentence(summary, head_trained=True)
    summary["dice"]["north"] = {"average": {"mean": 0.8}, "infusion": {"mean": 0.81}}
    assert average_sentence(summary, head_trained=True) == ""
    assert "is 25 % of the source branch" in average_sentence(summary, head_trained=False, source_share=0.25)


def test_bytes_are_given_by_stage_and_in_total(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    html = page(run)
    assert '<th scope="row">refine</th><td class="n" data-label="rounds">2</td>\n' in html
    assert '<td class="n" data-label="to sites">8.00</td><td class="n" data-label="from sites">4.00</td>' in html
    assert '<td class="n" data-label="to sites">28.00</td><td class="n" data-label="from sites">14.00</td>' in html
    assert "before a resume" not in html
    RunFolder(run).history.write_text("".join(RunFolder(run).history.read_text().splitlines(True)[1:]))
    assert '<th scope="row">attempts before a resume</th>' in page(run)


@pytest.mark.parametrize(
    ("rho", "pairs", "words"),
    [
        (0.9, 5, "rank correlation of +0.90 (Spearman). This is measured at the labelled sites"),
        (-0.8, 5, "rank correlation of −0.80 (Spearman). The score did not rank these rounds as Dice does"),
        (None, 3, "not validated: 3 rounds have both it and a validation Dice, and it needs 4"),
        (None, 5, "one of them never changed"),
        (None, 0, "No round has a label-free score"),
    ],
)
def test_score_is_believed_as_far_as_it_followed_dice(rho: float | None, pairs: int, words: str) -> None:
    rounds = [{"round": i, "score": 0.5, "source_val_dice": 0.6} for i in range(pairs)]
    assert words in score_sentence({"rounds": rounds, "rank_correlation_with_source_val_dice": rho})


def test_one_dot_a_patient_beside_the_baselines_sorted_by_it(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", evaluated={"east": evaluation((0.05, 0.02, 0.08))})
    assert "One dot a patient" not in page(run)
    patients = [PatientDice("east", "target", {"baseline": [0.8, 0.5, 0.6], "infusion": [0.7, 0.9, 0.65]})]
    keep(run, Drawn(patients=patients))
    html = page(run)
    assert re.findall(r"<title>baseline ([\d.]+), released model ([\d.]+)</title>", html) == [
        ("50.0", "90.0"),
        ("60.0", "65.0"),
        ("80.0", "70.0"),
    ]
    assert "east, 3 test patients" in html
    alone = [PatientDice("east", "target", {"infusion": [0.7, 0.9]})]
    keep(run, Drawn(patients=alone))
    assert "One dot a patient" not in page(run)


def test_the_baselines_curve_time_and_bytes_are_its_own(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", evaluated={"east": evaluation((0.05, 0.02, 0.08))})
    alone = page(run)
    assert "102 s from the first round to the last (88 s in this study" in " ".join(alone.split())
    assert "The baseline's training loss" not in alone
    study = baseline_of(study_with_baseline(), rounds=3)
    fabricate(run / "baseline", {"north": SOURCE}, study=study)
    changed = RunFolder(run).baseline.history
    changed.write_text(changed.read_text().replace("2026-11-23T03:5", "2026-11-23T03:4"))
    html = " ".join(page(run).split())
    assert "12 min from the first round to the last, the baseline's included (88 s in this study" in html
    chart = re.search(r"The baseline's training loss, labelled sites</h3>(<svg.*?</svg>)", html)
    assert chart
    assert chart[1].count('<circle class="dot baseline"') == 3
    assert "The baseline's own run is not in the total: 6.00 MB to sites, 3.00 MB from sites, 38 s." in html


def test_axes_show_the_data_and_not_the_whole_range(tmp_path: Path) -> None:
    chart = re.search(r'<svg[^>]*aria-label="Label-free score.*?</svg>', page(fabricate(tmp_path / "run")), re.S)
    assert chart
    ticks = [float(tick) for tick in re.findall(r'text-anchor="end">([\d.]+)</text>', chart[0])]
    assert min(ticks) == 60.0  # the least validation Dice
    assert max(ticks) == 75.0  # the largest is 71.0


def test_saved_tables_hold_no_formula_and_every_number(tmp_path: Path) -> None:
    formula = "=HYPERLINK(1)"
    participants = {"north": SOURCE, formula: TARGET}
    late = {3: {"sites": {"north": SiteRecord("source", "supervise", "refused", '@SUM(1), "no"')}}}
    run = fabricate(tmp_path / "run", participants, {formula: evaluation((-0.05, -0.08, -0.02))}, changes=late)
    links = re.findall(r'download="tiny-([a-z]+)\.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', page(run))
    tables = {name: list(csv.reader(io.StringIO(base64.b64decode(text).decode()))) for name, text in links}
    assert set(tables) == {"results", "rounds", "participation", "problems", "traffic"}
    assert not [cell for rows in tables.values() for row in rows for cell in row if cell.startswith(("=", "@", "+"))]
    assert tables["problems"][1] == ["north", "refused", '\'@SUM(1), "no"', "3"]
    header, *rows = tables["results"]
    found = dict(zip(header, rows[-1], strict=True))
    assert (found["site"], found["predictor"]) == (f"'{formula}", "infusion")
    assert (found["dice"], found["hd95"], found["test_patients"]) == ("0.8", "4.2", "36")
    assert (found["dice_difference"], found["dice_difference_low"]) == ("-0.05", "-0.08")
    assert [row[0] for row in tables["rounds"]] == ["round", *map(str, range(7))]


def test_every_table_can_be_read_aloud(tmp_path: Path) -> None:
    html = page(fabricate(tmp_path / "run", evaluated={"east": evaluation((0.05, 0.02, 0.08))}))
    assert not re.search(r"<th(?! scope=)[ >]", html)
    assert all('role="img" aria-label="' in chart for chart in re.findall(r"<svg[^>]*>", html))
    assert html.count('<div class="scroll"') == html.count(
        '<div class="scroll" tabindex="0" role="region" aria-label="'
    )
    assert '<a class="skip" href="#content">' in html
    assert '<main id="content">' in html


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [12.3, 87.6], [-1e-3, 4e-3], [0.0, 1e6]])
def test_axis_holds_all_values_between_few_round_ticks(values: list[float]) -> None:
    axis = axis_over(values)
    assert 2 <= len(axis.ticks) <= 8
    assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)


PICTURE = Example("east", "target", "patient 1", {"infusion": 0.7}, [("Image", b"webp-bytes")])


def test_a_report_made_again_has_the_pictures_and_the_command_of_the_simulation(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", evaluated={"east": evaluation((0.05, 0.02, 0.08))})
    patients = [PatientDice("east", "target", {"baseline": [0.8, 0.5], "infusion": [0.7, 0.9]})]
    keep(run, Drawn([PICTURE], patients))
    told = {"wall_s": 9.5, "command": "crossprobe simulate study.yaml", "hardware": "2 cores"}
    summary = write_summary(run, told)
    first = render_report(run).read_bytes()
    assert base64.b64encode(b"webp-bytes") in first
    assert b"One dot a patient" in first
    assert RunFolder(run).drawn.stat().st_mode & 0o077 == 0
    assert main(["report", str(run)]) == 0
    assert RunFolder(run).report.read_bytes() == first
    assert json.loads(RunFolder(run).summary.read_text()) == summary
    RunFolder(run).summary.write_text(json.dumps(summary | {"hash": "of another study"}))
    assert "command" not in write_summary(run)


def test_pictures_of_a_finished_run_only_and_none_that_are_damaged(tmp_path: Path) -> None:
    unfinished = fabricate(tmp_path / "unfinished", done=3)
    keep(unfinished, Drawn([PICTURE]))
    assert base64.b64encode(b"webp-bytes").decode() not in page(unfinished)
    run = fabricate(tmp_path / "run")
    for damage in ("{", "[]", '{"version": 1, "pictures": [{"site": 1}], "patients": []}', '{"version": 2}'):
        RunFolder(run).drawn.write_text(damage)
        with pytest.raises(RunError, match=r"drawn\.json is damaged. Remove it"):
            render_report(run)
