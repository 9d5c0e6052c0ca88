"""Example pictures: the promised patients and panels, and nothing of who they are."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fabricated import PAIR, evaluation, fabricate, study_with_baseline
from PIL import Image
from safetensors.numpy import save
from tiny import study as tiny_study

from clients.data.dataset import Dataset
from clients.data.site import Site, load_site
from clients.learning.evaluate import measure_patients
from common.baseline import baseline_of
from common.components import BASELINE
from common.errors import RunError
from common.metrics import mean_by_patient, measure_frame
from common.networks import initial_networks
from common.run_folder import RunFolder
from common.study import Study
from server.report.drawn import Drawn, Example, keep
from server.report.page import render_report
from server.state import ServerState, fused_tensors, save_state
from simulations.examples import _networks, _worth_a_look, draw_examples


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study with a baseline and a run of it that holds untrained networks."""
    study = study_with_baseline()
    run = tmp_path_factory.mktemp("pictures") / "run"
    fabricate(run, study=study, evaluated={"east": evaluation((0.05, 0.02, 0.08))})
    tensors = initial_networks(study).export((*study.components, *BASELINE))
    state = ServerState(round=7, components=tensors, released_round=3, best_score=0.6, participants=PAIR)
    save_state(RunFolder(run).checkpoint, state, study.hash())
    RunFolder(run).release.mkdir()
    RunFolder(run).model.write_bytes(save(fused_tensors(tensors)))
    return study, run


@pytest.fixture(scope="module")
def sites(pair: tuple[Path, Path]) -> list[Site]:
    return [load_site(folder) for folder in pair]


@pytest.fixture(scope="module")
def examples(untrained: tuple[Study, Path], sites: list[Site]) -> list[Example]:
    return draw_examples(*untrained, sites).pictures


def test_pictures_show_best_median_and_worst_of_each_site(examples: list[Example]) -> None:
    assert [example.site for example in examples] == ["north"] * 3 + ["east"] * 3
    ranks = [example.label.partition(", ")[2] for example in examples[:3]]
    assert ranks == ["best Dice of 5 patients", "median Dice of 5 patients", "worst Dice of 5 patients"]
    best, median, worst = (example.dice["infusion"] for example in examples[:3])
    assert best >= median >= worst
    assert set(examples[0].dice) == {"baseline", "source_branch", "target_branch", "average", "infusion"}


def test_same_run_gives_the_same_pictures(
    untrained: tuple[Study, Path], sites: list[Site], examples: list[Example]
) -> None:
    assert draw_examples(*untrained, sites[:1], per_site=1).pictures == examples[1:2]


def test_panels_keep_the_aspect_ratio_and_name_what_they_show(examples: list[Example]) -> None:
    example = examples[0]
    captions = [caption for caption, _ in example.panels]
    assert captions[:4] == ["Image", "Baseline", "Source branch", "Target branch"]
    assert captions[4:] == [
        "Infusion weight, mean 0.50",
        "Infusion (released)",
        "Truth, outline",
        "Infusion over truth, outlines",
    ]
    for _, content in example.panels:
        assert Image.open(io.BytesIO(content)).size == (400, round(400 * 40 / 48))
    truth = np.asarray(Image.open(io.BytesIO(example.panels[6][1]))).astype(int)
    assert (abs(truth - (240, 228, 66)) < 25).all(-1).any()


def test_dice_by_patient_has_the_mean_that_the_site_reports(untrained: tuple[Study, Path], sites: list[Site]) -> None:
    study, run = untrained
    networks = _networks(study, run)
    for site, drawn in zip(sites, draw_examples(*untrained, sites).patients, strict=True):
        measured = measure_patients(networks, study, Dataset(site, study), study.predictors, measure_frame)
        assert drawn.site == site.config.name
        for name, of_patients in drawn.dice.items():
            assert of_patients == pytest.approx(mean_by_patient(measured[name], "dice").tolist())
            assert len(of_patients) == len(site.patients("test", labelled=True))


def test_of_many_sites_the_best_median_and_worst_are_shown(tmp_path: Path, sites: list[Site]) -> None:
    many = [
        replace(site, config=site.config.model_copy(update={"name": f"{site.config.name}-{i}"}))
        for site in sites
        for i in range(5)
    ]
    dice = {"north": (0.7, 0.9, 0.5, 0.8, 0.6), "east": (0.5, 0.6, 0.7, 0.8, 0.9)}
    evaluated = {f"{name}-{i}": evaluation(None, dice=d) for name, own in dice.items() for i, d in enumerate(own)}
    participants = {site.config.name: PAIR[site.config.name[:-2]] for site in many}
    run = fabricate(tmp_path / "run", participants, evaluated, study=tiny_study())
    chosen = [site.config.name for site in _worth_a_look(run, many)]
    assert chosen == ["north-1", "north-0", "north-2", "east-4", "east-2", "east-0"]
    assert _worth_a_look(run, many[:3] + many[5:8]) == many[:3] + many[5:8]


def test_site_without_test_labels_gets_pictures_without_truth(untrained: tuple[Study, Path], sites: list[Site]) -> None:
    blind = replace(sites[1], frames=tuple(replace(frame, mask=None) for frame in sites[1].frames))
    examples = draw_examples(*untrained, [blind], per_site=2).pictures
    assert len(examples) == 2
    assert all(not e.dice and "Truth, outline" not in dict(e.panels) for e in examples)
    assert "not labelled" in examples[0].label


def test_neither_patient_nor_file_name_reaches_the_page(
    untrained: tuple[Study, Path], sites: list[Site], examples: list[Example]
) -> None:
    keep(untrained[1], Drawn(examples))
    html = render_report(untrained[1]).read_text(encoding="utf-8")
    assert html.count("data:image/webp;base64,") == 6 * 8
    for site in sites:
        for frame in site.frames:
            assert frame.patient not in html
            assert frame.image.name not in html
        assert str(site.folder) not in html


def test_pictures_need_a_final_model(tmp_path: Path, sites: list[Site]) -> None:
    study = study_with_baseline()
    with pytest.raises(RunError, match="--resume"):
        draw_examples(study, fabricate(tmp_path / "run", study=study, done=2), sites)


def test_study_of_one_branch_has_no_pictures(tmp_path: Path, sites: list[Site]) -> None:
    assert draw_examples(baseline_of(tiny_study()), tmp_path, sites) == Drawn()
