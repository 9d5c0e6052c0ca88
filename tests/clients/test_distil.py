"""The student: it learns what the released model predicts, without labels, and is released, drawn and measured."""

import csv
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from finished import Finished
from PIL import Image
from private import SETTINGS
from recordings import frame
from tiny import answer, distilling, one_stage, refusal, request, round_of, same, workers

from clients.data.dataset import Dataset
from clients.predict import TABLE
from clients.released import load_model
from common.components import STUDENT, Tensors, component_of
from common.errors import RunError
from common.infusion import predict_maps
from common.messages import digest
from common.networks import initial_networks
from common.release import CARD, RELEASE
from common.run_folder import RunFolder
from common.study import Study
from common.study_settings import InitialWeights
from crossprobe import main
from server.algorithm import lacking
from server.report.page import report_page
from server.report.summary import summary_of
from server.rounds import requests_of
from server.run import run_study
from simulations.local import LocalTransport

DISTIL = {"task": "distil", "steps": 8, "learning_rate": 0.02}


def alone(weights: Path = Path("x"), **changes: object) -> Study:
    """A study that gives a model, which is there already, a student."""
    given = InitialWeights(file=weights, sha256=digest(weights.read_bytes()) if weights.exists() else "0" * 64)
    initial = {name: given.model_dump() for name in ("source_branch", "target_branch", "infusion_head")}
    stages = [{"name": "distil", "rounds": 1, "source": DISTIL, "target": DISTIL}]
    return distilling(**{"stages": stages, "initial": initial} | changes)


def distance(of: Study, tensors: Tensors, data: Dataset) -> float:
    """Mean squared distance of the student's map to the fused one's, over training patients."""
    networks, found = initial_networks(of), []
    networks.load(tensors)
    for shown in data.overview("train", 6):
        sample = data.sample(shown)
        maps = predict_maps(networks, of, sample.image, sample.valid, ("infusion", "student"))
        found.append(float((maps["infusion"] - maps["student"])[sample.valid].square().mean()))
    return sum(found) / len(found)


@pytest.mark.parametrize("role", ["source", "target"])
def test_the_student_comes_to_predict_what_the_teacher_does_and_no_label_is_read(
    role: str, pair: Sequence[Path], trained: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = alone(stages=[{"name": "distil", "rounds": 1, role: DISTIL}])
    (worker,) = workers(of, [pair[role == "target"]])
    for module in ("clients.data.dataset", "clients.learning.scoring", "clients.learning.evaluate"):
        monkeypatch.setattr(f"{module}.read_mask", lambda frame: pytest.fail("a mask was opened"))
    asked = request(of, "distil", worker.site.config.role, trained)
    header, updates = answer(worker, asked)
    assert {component_of(name) for name in updates} == set(STUDENT)
    assert header.metrics.keys() == {"loss"}

    begun = initial_networks(of).export(of.components) | trained
    model, losses = begun, [header.metrics["loss"]]
    for _ in range(4):
        model = model | {name: model[name] + x for name, x in updates.items()}
        header, updates = answer(worker, request(of, "distil", worker.site.config.role, model))
        losses.append(header.metrics["loss"])
    assert losses[-1] < losses[1] < losses[0]
    assert distance(of, model, worker.data) < 0.5 * distance(of, begun, worker.data)


def test_under_privacy_the_student_is_trained_with_clipped_and_noised_gradients_and_no_number_leaves(
    pair: Sequence[Path], trained: Tensors
) -> None:
    quiet = alone(privacy=SETTINGS | {"noise_multiplier": 0.3}, batch_size=4)
    (east,) = workers(quiet, pair[1:])
    header, updates = answer(east, request(quiet, "distil", "target", trained))
    assert header.metrics == {}
    assert any(x.any() for x in updates.values())
    assert len(east.accountant.charges) == 1
    again = workers(quiet.model_copy(update={"seed": 5}), pair[1:])[0]
    _, other = answer(again, request(again.study, "distil", "target", trained))
    assert not same(updates, other)


def test_the_teacher_is_the_released_model_and_a_round_needs_its_quorum(distilled: Finished) -> None:
    of, state = distilled.study, distilled.state
    now = {name: x + 1 for name, x in state.components.items()}
    round_ = round_of(of, "distil")
    (sent, *_) = requests_of(of, replace(state, components=now), round_).values()
    expected = now | state.released
    assert same(sent.tensors, {name: expected[name] for name in sent.tensors})
    assert {component_of(name) for name in sent.tensors} >= {"infusion_head", *STUDENT}
    assert lacking(of, ["source"], round_) == {"target": (0, 1)}
    assert lacking(of, ["source"], round_of(of, "evaluate")) == {}


def test_the_student_is_released_evaluated_and_on_the_report(distilled: Finished, tmp_path: Path) -> None:
    run = distilled.run
    summary = summary_of(run)
    for site in ("north", "east"):
        assert 0 <= summary["dice"][site]["student"]["mean"] <= 1
        assert summary["dice"][site]["student"]["mean"] != summary["dice"][site]["infusion"]["mean"]
    page = report_page(run)
    assert "The small, fast network that learned what the released model predicts" in page
    card = (run / RELEASE / CARD).read_text()
    assert "| student | basic_unet, channels 4, 4, 4, 4, 4, taught by the others |" in card


def test_without_a_student_nothing_speaks_of_one(finished: Finished) -> None:
    assert "student" not in (finished.run / RELEASE / CARD).read_text()
    assert all("student" not in predictors for predictors in summary_of(finished.run)["dice"].values())
    with pytest.raises(RunError, match="found none: study `tiny` has no `distil` stage"):
        load_model(finished.run, network="student")


def test_what_is_drawn_is_what_was_asked_for(distilled: Finished, tmp_path: Path) -> None:
    image = frame(3).astype(np.float32) / 255
    whole, student = load_model(distilled.run), load_model(distilled.run, network="student")
    assert (whole.predictor, student.predictor) == ("infusion", "student")
    assert student.maps(image, None).keys() == {"student"}
    assert not np.array_equal(whole.probability(image, None), student.probability(image, None))

    (tmp_path / "scans").mkdir()
    Image.fromarray(frame(3)).save(tmp_path / "scans" / "a.png")
    masks = []
    models = [whole, *(load_model(distilled.run, network=name) for name in ("target_branch", "student"))]
    for name, more in (("whole", []), *((name, ["--network", name]) for name in ("target_branch", "student"))):
        words = ["predict", "--model", str(distilled.run), "--images", str(tmp_path / "scans"), *more]
        assert main([*words, "--out", str(tmp_path / name)]) == 0
        masks.append(np.asarray(Image.open(tmp_path / name / "masks" / "a.png")) > 0)
        (row,) = csv.DictReader((tmp_path / name / TABLE).open())
        assert bool(row["branch_dice"]) == (name == "whole")
    for mask, model in zip(masks, models, strict=True):
        assert np.array_equal(mask, model.probability(image, None) > 0.5)


def test_a_branch_that_nothing_trained_is_no_model(finished: Finished, pair: Sequence[Path], tmp_path: Path) -> None:
    of = one_stage(source={"task": "supervise", "trains": ["target_branch"], "steps": 2})
    run_study(of, LocalTransport(workers(of, pair)), tmp_path / "run")
    assert load_model(tmp_path / "run", network="target_branch").predictor == "target_branch"
    with pytest.raises(RunError, match=r"expected a trained source_branch .* study `tiny` trains target_branch alone"):
        load_model(tmp_path / "run", network="source_branch")
    assert load_model(finished.run, network="source_branch").predictor == "source_branch"


def test_the_student_is_never_mirrored(pair: Sequence[Path]) -> None:
    of = distilling()
    networks = initial_networks(of)
    image = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(32, 32, dtype=torch.bool)
    plain = predict_maps(networks, of, image, valid, ("student",))["student"]
    assert of.flips_at_inference
    unflipped = of.model_copy(update={"flips_at_inference": False})
    assert torch.equal(plain, predict_maps(networks, unflipped, image, valid, ("student",))["student"])
    together = predict_maps(networks, of, image, valid, of.predictors)
    assert torch.allclose(together["student"], plain, atol=1e-6)


def test_a_finished_model_gets_a_student_and_stays_as_it_is(
    finished: Finished, pair: Sequence[Path], tmp_path: Path
) -> None:
    weights = Path(shutil.copy(RunFolder(finished.run).model, tmp_path / "model.safetensors"))
    of = alone(weights)
    state = run_study(of, LocalTransport(workers(of, pair)), tmp_path / "run")
    assert same(state.released, finished.state.released)
    assert load_model(tmp_path / "run", network="student").study.hash() == of.hash()
    before, after = summary_of(finished.run)["dice"]["east"], summary_of(tmp_path / "run")["dice"]["east"]
    assert after["infusion"] == before["infusion"]


def test_a_student_that_looks_made_is_refused(pair: Sequence[Path], trained: Tensors) -> None:
    of = alone()
    (north,) = workers(of, pair[:1])
    crafted = {name: x for name, x in initial_networks(of).export(STUDENT).items() if name.endswith("conv.weight")}
    blind = {name: np.zeros_like(x) for name, x in crafted.items()}
    assert refusal(north.handle(request(of, "distil", "source", trained | blind))).code == "implausible-weights"
