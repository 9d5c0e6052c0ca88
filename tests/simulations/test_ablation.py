"""`crossprobe ablate`: the variants train what they say, shared stages once, and a stopped one goes on."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from hospital import with_policy

from clients.data.site import load_site
from common.baseline import baseline_of
from common.errors import RunError, StudyError
from common.study import CLOSING_SCORE
from server import algorithm, history
from simulations.ablation.cells import LOG, Ablation, Cell, check_measurable, load_ablation, run_ablation
from simulations.ablation.code_version import code_digest
from simulations.ablation.page import chart, overview, publish, section
from simulations.ablation.results import page
from simulations.ablation.stage_cache import StageCache
from simulations.ablation.tally import BASELINE, CONTRASTS, ORACLE
from simulations.ablation.variants import RIVALS, VARIANTS, chosen

FAST = ["baseline", "short-two-baselines", "two-baselines", "mim", "paper", "all", "rounds"]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    root = tmp_path_factory.mktemp("sites")
    return tiny.write_site(root / "north", "source", seed=1), tiny.write_site(root / "east", "target", seed=2, gain=0.6)


def stage_cache(sites: Sequence[Path], cache: Path, **changes: object) -> StageCache:
    return StageCache(tiny.study(**changes), [load_site(folder) for folder in sites], cache)


def trained_folders(cache: Path) -> int:
    return sum(1 for folder in cache.iterdir() if (folder / "state.json").exists())


def test_a_stage_that_two_variants_share_is_trained_once(sites: Sequence[Path], tmp_path: Path) -> None:
    study, rounds = tiny.study(), []
    own = StageCache(study, [load_site(folder) for folder in sites], tmp_path, rounds.append)
    own.train(study.stages[:2])
    before = len(rounds)
    own.train(study.stages[:3])
    assert [record.stage for record in rounds[before:]] == ["refine", "refine"]
    assert trained_folders(tmp_path) == 3


def test_a_site_that_refuses_a_stage_is_named_with_its_reason(sites: Sequence[Path], tmp_path: Path) -> None:
    study = tiny.study()
    careful = [with_policy(load_site(folder), min_update_draws=10_000) for folder in sites]
    with pytest.raises(RunError) as error:
        StageCache(study, careful, tmp_path).train(study.stages[:1])
    assert "fell short of quorum: east refused policy-" in str(error.value)
    assert "SiteRecord" not in str(error.value)


def test_a_sequence_killed_in_mid_stage_ends_with_the_same_tensors(sites: Sequence[Path], tmp_path: Path) -> None:
    stages = tiny.study().stages[:3]
    whole = stage_cache(sites, tmp_path / "whole").train(stages)
    stopped = stage_cache(sites, tmp_path / "stopped")

    def stop(record: history.RoundRecord) -> None:
        if (record.stage, record.round) == ("refine", 1):
            raise KeyboardInterrupt

    stopped.on_round = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.train(stages)
    (folder,) = {path.parent for path in tmp_path.glob("stopped/*/history.jsonl") if "refine" in path.read_text()}
    # the line of a round whose state was not kept: killed between the two
    lines = (folder / "history.jsonl").read_text()
    again = lines.splitlines()[-1].replace('"round":0', '"round":1')
    (folder / "history.jsonl").write_text(lines + again + "\n")
    resumed = stage_cache(sites, tmp_path / "stopped").train(stages)
    assert [record.round for record in history.read(folder)] == [0, 1]
    assert all(np.array_equal(resumed.components[name], x) for name, x in whole.components.items())


def test_a_stage_that_releases_nothing_keeps_the_model_of_the_stage_before(
    sites: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = stage_cache(sites, tmp_path)
    stages = own.study.stages[:3]
    before = own.train(stages)
    assert before.released_round == 1
    monkeypatch.setattr(algorithm, "_judged", lambda study, state, *rest: (state, False))
    own.train([*stages, CLOSING_SCORE])
    again = stage_cache(sites, tmp_path).kept([*stages, CLOSING_SCORE])
    assert again is not None
    assert all(np.array_equal(again.released[name], x) for name, x in before.released.items())


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 5}, {"weight_decay": 0.1}])
def test_another_setting_is_another_key(sites: Sequence[Path], tmp_path: Path, change: dict[str, object]) -> None:
    stages = tiny.study().stages[:1]
    assert stage_cache(sites, tmp_path).folder(stages) != stage_cache(sites, tmp_path, **change).folder(stages)


FORK = [
    {"name": "supervise", "rounds": 2, "source": {"task": "supervise", "trains": ["source_branch"], "steps": 2}},
    {
        "name": "refine",
        "rounds": 1,
        "begin": {"target_branch": "source_branch"},
        "source": {"task": "supervise", "trains": ["target_branch"], "steps": 2, "learning_rate": 1e-12},
        "target": {"task": "self_train", "trains": ["target_branch"], "steps": 2, "learning_rate": 1e-12},
    },
]


@pytest.mark.parametrize("pooled", [False, True])
def test_a_branch_that_begins_as_the_other_one_has_its_weights(
    pooled: bool, sites: Sequence[Path], tmp_path: Path
) -> None:
    own = stage_cache(sites, tmp_path, stages=FORK)
    components = own.train(own.study.stages, pooled).components
    for name, x in components.items():
        if name.startswith("source_branch."):
            assert np.allclose(components[name.replace("source", "target", 1)], x, atol=1e-6), name
    apart = own.train(own.study.stages[:1], pooled).components
    assert not np.allclose(
        apart["target_branch.decoder/final_conv.weight"], apart["source_branch.decoder/final_conv.weight"]
    )


def test_another_target_shares_the_stages_in_which_no_target_works(sites: Sequence[Path], tmp_path: Path) -> None:
    other = tiny.write_site(tmp_path / "west", "target", seed=5)
    first, second = stage_cache(sites, tmp_path, stages=FORK), stage_cache((sites[0], other), tmp_path, stages=FORK)
    stages = first.study.stages
    assert first.folder(stages[:1]) == second.folder(stages[:1])
    assert first.folder(stages) != second.folder(stages)
    first.train(stages[:1])
    assert set(second.train(stages).participants) == {"north", "west"}


def test_other_images_are_another_key(sites: Sequence[Path], tmp_path: Path) -> None:
    other = tiny.write_site(tmp_path / "north", "source", seed=9)
    stages = tiny.study().stages[:1]
    assert stage_cache(sites, tmp_path).folder(stages) != stage_cache((other, sites[1]), tmp_path).folder(stages)


def test_pooled_training_moves_what_federated_training_moves(sites: Sequence[Path], tmp_path: Path) -> None:
    stages = tiny.study().stages
    own = stage_cache(sites, tmp_path)
    federated, pooled = own.train(stages), own.train(stages, pooled=True)
    begin = own.kept(stages[:1])
    assert begin is not None
    assert federated.components.keys() == pooled.components.keys()
    for name, x in begin.components.items():
        moved = [not np.array_equal(state.components[name], x) for state in (federated, pooled)]
        assert moved[0] == moved[1], name
    assert own.cost(stages, pooled=True)[1] == 0


@pytest.mark.parametrize("average", [0.0, 0.8])
def test_one_site_alone_pooled_equals_plain_training_but_for_the_fresh_optimizer(
    average: float, sites: Sequence[Path], tmp_path: Path
) -> None:
    """One round of one site: no averaging over sites, no second optimizer, so federated and pooled must agree."""
    task = {"task": "supervise", "trains": ["source_branch"], "steps": 3, "average": average}
    study = tiny.one_stage(source=task)
    own = StageCache(study, [load_site(sites[0])], tmp_path)
    federated, pooled = own.train(study.stages), own.train(study.stages, pooled=True)
    for name, x in federated.components.items():
        assert np.allclose(pooled.components[name], x, atol=1e-6), name


def test_every_variant_spends_the_same_supervised_steps_as_its_reference() -> None:
    study = tiny.study()
    steps = {v.name: study.model_copy(update={"stages": tuple(v.stages(study))}).supervised_steps() for v in VARIANTS}
    total = study.supervised_steps()
    for name in ("baseline", "plain-baseline", "two-baselines", "only-refine", "all", "pooled", "oracle"):
        assert total <= steps[name] <= total + 20, name  # whole steps a round are rounded up
    forked = tiny.study(stages=FORK)
    for name in ("baseline", "plain-baseline", "all"):
        stages = tuple(chosen([name])[0].stages(forked))
        assert forked.model_copy(update={"stages": stages}).supervised_steps() == forked.supervised_steps(), name
    for name in ("short-baseline", "short-two-baselines"):
        assert steps["paper"] <= steps[name] <= steps["paper"] + 20
    assert steps["paper"] < total


def test_the_questions_are_about_rows_that_there_are() -> None:
    rows = {row for variant in (*VARIANTS, *RIVALS) for row in variant.rows}
    assert {row for asked in CONTRASTS for row in asked} | {BASELINE, ORACLE} <= rows


def test_switching_a_term_off_leaves_everything_else() -> None:
    study = tiny.study()
    mim = chosen(["mim"])[0].stages(study)
    assert [stage.name for stage in mim] == ["pretrain", "adapt"]
    assert all(stage.target.contrast_weight == 0 for stage in mim)  # type: ignore[union-attr]
    assert all(stage.target.reconstruction_weight > 0 for stage in mim)  # type: ignore[union-attr]


def test_the_oracle_is_trained_as_the_baseline() -> None:
    study = tiny.study()
    assert chosen(["oracle"])[0].stages(study) == list(baseline_of(study).stages)


@pytest.fixture(scope="module")
def finished(sites: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Ablation, Path, dict]:
    root = tmp_path_factory.mktemp("ablation")
    tiny.write_study(root / "study.yaml")
    content = {
        "name": "tiny-ablation",
        "study": "study.yaml",
        "seeds": [0, 1],
        "data": [{"name": "bands", "sites": [str(site) for site in sites]}],
        "variants": FAST,
    }
    (root / "ablation.yaml").write_text(yaml.safe_dump(content))
    ablation = load_ablation(root / "ablation.yaml")
    return ablation, root / "out", run_ablation(ablation, root / "out", 1, lambda done, total: None)


def test_every_row_has_means_differences_and_cost(finished: tuple[Ablation, Path, dict]) -> None:
    table = finished[2]["data"]["bands"]
    assert set(table["rows"]) == {row for v in chosen(FAST) for row in v.rows}
    for row, own in table["rows"].items():
        assert 0 <= own["target"]["mean"] <= 1
        assert len(own["target"]["seeds"]) == 2
        assert own["bytes"] > 0
        if row != "baseline":
            found = own["target"]["difference"]
            assert found["low"] <= found["mean"] <= found["high"]
            assert found["mean"] == pytest.approx(own["target"]["mean"] - table["rows"]["baseline"]["target"]["mean"])
    tested = {row: own["p_holm"] for row, own in table["rows"].items() if "p_holm" in own}
    assert list(tested) == [list(v.rows)[-1] for v in chosen(FAST) if v.rows and v.name != "baseline"]
    for row, p in tested.items():
        assert table["rows"][row]["target"]["difference"]["p"] <= p <= 1
    assert table["gap"] == {}


def test_each_round_of_refine_is_measured_and_the_last_is_what_training_goes_on_from(
    finished: tuple[Ablation, Path, dict], sites: Sequence[Path], tmp_path: Path
) -> None:
    table = finished[2]["data"]["bands"]
    stages = chosen(["rounds"])[0].stages(tiny.study())
    assert [len(course) for course in table["courses"]] == [stages[-1].rounds] * 2
    own = stage_cache(sites, tmp_path)
    states = list(own.each_round(stages))
    after = own.train(stages)
    assert all(np.array_equal(states[-1][name], after.components[name]) for name in states[-1])
    behind = 100 * (max(table["courses"][0]) - table["rows"]["all stages (average)"]["target"]["seeds"][0])
    assert f"behind the best of them by {behind:.1f}, " in section(
        finished[2] | {"command": "crossprobe ablate tiny.yaml"}, "results/ablation"
    )


def test_no_patient_is_named_in_what_is_published(finished: tuple[Ablation, Path, dict], tmp_path: Path) -> None:
    _, out, summary = finished
    summary = summary | {"command": "crossprobe ablate tiny.yaml"}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "notes.md").write_text("# Results\n")
    publish(summary, tmp_path / "results")
    text = page(tmp_path / "results")
    assert "## Ablation: tiny-ablation\n\n`crossprobe ablate tiny.yaml`" in text
    assert section(summary, "results/ablation") in text
    published = "".join(file.read_text() for file in (tmp_path / "results").rglob("*.*")) + text
    assert "kept-" not in published
    assert "scan-" not in published
    assert "kept-" in next((out / "cells").rglob("all.json")).read_text()  # the search would find one
    assert "<svg xmlns=" in (tmp_path / "results" / "ablation" / "bands.svg").read_text()


def test_a_second_run_trains_nothing_again(finished: tuple[Ablation, Path, dict]) -> None:
    ablation, out, summary = finished
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    again = run_ablation(ablation, out, 1, lambda done, total: None)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == before
    assert json.dumps(again["data"]) == json.dumps(summary["data"])


def test_a_study_that_begins_with_weights_of_a_file_is_refused(sites: Sequence[Path], tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="leave the key initial out"):
        stage_cache(sites, tmp_path, initial={"baseline": {"file": "x", "sha256": "0" * 64}})


def test_an_unknown_variant_and_a_missing_study_are_named(tmp_path: Path) -> None:
    content = {
        "name": "x",
        "study": "s.yaml",
        "seeds": [0],
        "data": [{"name": "d", "sites": ["a"]}],
        "variants": ["baseline", "best"],
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(StudyError, match="unknown variant best; known: baseline, "):
        load_ablation(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"name": "x", "data": [{"name": "d"}]}))
    with pytest.raises(
        StudyError, match=r"study: expected this key, found none\n  seeds: .*\n  data\.0: .*give either `sites` or"
    ):
        load_ablation(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seeds": [0, 1, 0]}, "given twice, and would be trained into the same folder: 0"),
        ({"data": [{"name": "d", "sites": ["a"]}, {"name": "d", "sites": ["b"]}]}, "into the same folder: d"),
        ({"data": [{"name": "d", "sites": ["a"], "source": ["lumify_like"]}]}, "give either `sites` or phantom"),
        ({"variants": ["all"]}, "`variants` lack `baseline`"),
    ],
)
def test_a_file_that_could_only_fail_after_hours_is_refused(
    tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    content = {"name": "x", "study": "s.yaml", "seeds": [0], "data": [{"name": "d", "sites": ["a"]}]}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content | change))
    with pytest.raises(StudyError, match=re.escape(expected)):
        load_ablation(tmp_path / "a.yaml")


def test_a_page_is_written_of_the_baseline_alone(finished: tuple[Ablation, Path, dict]) -> None:
    table = finished[2]["data"]["bands"]
    alone = {**table, "rows": {"baseline": table["rows"]["baseline"]}, "contrasts": [], "courses": []}
    summary = finished[2] | {"command": "crossprobe ablate tiny.yaml", "data": {"bands": alone}}
    assert "| baseline | " in section(summary, "results/ablation")
    assert "bands" not in overview([summary])
    assert chart("bands", alone).endswith("</svg>")


def test_a_killed_ablation_leaves_no_process_that_goes_on(
    finished: tuple[Ablation, Path, dict], tmp_path: Path
) -> None:
    """Two that write one folder would mix their stages, so whoever is left stops after its round."""
    log = tmp_path / "out" / LOG
    command = ["ablate", str(finished[1].parent / "ablation.yaml"), "--out", str(tmp_path / "out"), "--jobs", "1"]
    running = subprocess.Popen([sys.executable, "-m", "crossprobe", *command], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (log.exists() and "  baseline 1" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.kill()
    running.wait()
    time.sleep(3)
    seen = log.read_text()
    assert "paper" not in seen  # it would still have had much to do
    time.sleep(3)
    assert log.read_text() == seen


def test_a_table_names_the_code_behind_it_and_says_where_it_mixes_versions(
    finished: tuple[Ablation, Path, dict],
) -> None:
    summary = finished[2] | {"command": "crossprobe ablate tiny.yaml"}
    version = code_digest("simulations.ablation.measuring")
    assert summary["code"] == [version]
    assert f"; code `{version[:12]}`." in section(summary, "results/ablation")
    assert "**mixed versions of the code: `aaaa`, `bbbb`**" in section(summary | {"code": ["aaaa", "bbbb"]}, "x")
    del summary["code"]
    assert "version of the code not recorded" in section(summary, "results/ablation")


def test_numbers_of_another_version_of_the_code_are_made_again(
    finished: tuple[Ablation, Path, dict], tmp_path: Path
) -> None:
    ablation, out, _ = finished
    ablation = ablation.model_copy(update={"seeds": (0,), "variants": ("baseline",)})
    file = Cell(ablation, ablation.data[0], 0, tmp_path).file(chosen(["baseline"])[0])
    file.parent.mkdir(parents=True)
    stale = json.loads((out / file.relative_to(tmp_path)).read_text())
    right = stale["sites"]
    stale |= {"made_of": stale["made_of"] | {"code": "of another version"}, "sites": {}}
    file.write_text(json.dumps(stale))
    run_ablation(ablation, tmp_path, 1, lambda done, total: None)
    assert json.loads(file.read_text())["sites"] == right


def test_sites_by_whom_nothing_can_be_compared_are_refused_before_anything_is_trained(sites: Sequence[Path]) -> None:
    opened = [load_site(folder) for folder in sites]
    check_measurable(opened)
    blind = [replace(s, frames=tuple(f for f in s.frames if f.split != "test")) for s in opened]
    with pytest.raises(RunError, match="at the source sites, found 0"):
        check_measurable(blind)
