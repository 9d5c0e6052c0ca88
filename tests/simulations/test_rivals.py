"""The field's methods as an ablation trains them: each does what its paper says, under the study's own budget."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from torch import Tensor

from clients.data.dataset import Dataset
from clients.data.site import load_site
from clients.governance.policy import Policy
from clients.learning import self_train
from clients.learning.training import TaskContext, objective_of, perform
from common.errors import StudyError
from common.networks import initial_networks
from common.stage import Round, Stage
from common.tasks import TASKS, SelfTrain, Supervise
from simulations.ablation import stage_cache
from simulations.ablation.cells import Cell, load_ablation, run_cell, summarise
from simulations.ablation.rivals import class_ratio, masked_consistency, mean_teacher
from simulations.ablation.rivals.class_ratio import ClassRatio, ratio_divergence, weighted_entropy
from simulations.ablation.rivals.fourier import FourierSupervise, Translated, low_amplitudes, translated
from simulations.ablation.rivals.masked_consistency import MaskedConsistency
from simulations.ablation.rivals.mean_teacher import MeanTeacher
from simulations.ablation.stage_cache import StageCache
from simulations.ablation.variants import RIVALS, chosen

#: Known in these tests alone, though imported for good: no hospital's table has them.
RIVAL_TASKS = {
    name: TASKS.pop(name) for name in ("class_ratio", "masked_consistency", "fourier_supervise", "mean_teacher")
}
FORK = [
    {
        "name": "supervise",
        "rounds": 2,
        "source": {"task": "supervise", "trains": ["source_branch"], "steps": 4, "average": 0.5, "artefacts": 0.5},
    },
    {
        "name": "refine",
        "rounds": 2,
        "begin": {"target_branch": "source_branch"},
        "source": {"task": "supervise", "trains": ["target_branch"], "steps": 3},
        "target": {
            "task": "self_train",
            "trains": ["target_branch"],
            "steps": 5,
            "learning_rate": 1e-3,
            "average": 0.5,
            "artefacts": 0.5,
            "strength": 0.2,
            "prior_tolerance": 3,
        },
    },
]


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    TASKS.update(RIVAL_TASKS)
    yield
    for name in RIVAL_TASKS:
        del TASKS[name]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, known: None) -> Sequence[Path]:
    root = tmp_path_factory.mktemp("sites")
    return tiny.write_site(root / "north", "source", seed=1), tiny.write_site(root / "east", "target", seed=2, gain=0.6)


def context(sites: Sequence[Path], stage: Stage, role: str, *, prior: float | None = 0.2) -> TaskContext:
    of = tiny.study(stages=FORK)
    task = stage.source if role == "source" else stage.target
    assert task is not None
    data = Dataset(load_site(sites[role == "target"]), of)
    return TaskContext(
        of, Round(0, stage, 0), task, initial_networks(of), data, Policy(), b"s" * 32, foreground_prior=prior
    )


def last_stage(variant: str) -> Stage:
    return chosen([variant])[0].stages(tiny.study(stages=FORK))[-1]


def test_a_rival_takes_the_place_of_self_training_under_its_settings_and_nothing_else_changes() -> None:
    own = tiny.study(stages=FORK).stages
    for variant, kind in (
        ("class-ratio", ClassRatio),
        ("masked-consistency", MaskedConsistency),
        ("mean-teacher", MeanTeacher),
    ):
        first, last = chosen([variant])[0].stages(tiny.study(stages=FORK))
        assert first == own[0]
        assert last.model_copy(update={"target": None}) == own[1].model_copy(update={"target": None})
        assert isinstance(last.target, kind)
        assert isinstance(own[1].target, SelfTrain)
        for name in ("trains", "steps", "learning_rate", "warmup_steps", "average", "strength", "artefacts"):
            assert getattr(last.target, name) == getattr(own[1].target, name), name


@pytest.mark.parametrize("variant", ["class-ratio", "masked-consistency", "mean-teacher"])
def test_a_rival_lowers_its_loss(variant: str, sites: Sequence[Path]) -> None:
    stage = last_stage(variant)
    assert stage.target is not None
    alone = stage.model_copy(
        update={"source": None, "rounds": 1, "target": stage.target.model_copy(update={"steps": 6})}
    )
    of = tiny.study(stages=FORK[:1]).model_copy(update={"stages": (alone,)})
    start = initial_networks(of).export(of.components)
    _, seen = tiny.repeated(of, tiny.workers(of, sites[1:])[0], start, times=3)
    losses = [metrics["loss"] for metrics in seen]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.98 * losses[0]


# class ratio


def logits_of(p: Tensor) -> Tensor:
    return torch.logit(p).reshape(1, 1, 2, -1)


def test_the_entropy_is_that_of_the_formula_on_valid_pixels_alone() -> None:
    p = torch.tensor([0.2, 0.9, 0.5, 0.01])
    valid = torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    expected = sum(-0.9 * q * math.log(q) - 0.1 * (1 - q) * math.log(1 - q) for q in (0.2, 0.9, 0.5)) / 3
    assert weighted_entropy(logits_of(p), valid, 0.9).tolist() == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6])
def test_the_ratio_draws_the_foreground_of_a_batch_to_it(ratio: float) -> None:
    logits, valid = torch.zeros(4, 1, 8, 8, requires_grad=True), torch.ones(4, 1, 8, 8)
    for _ in range(200):
        (slope,) = torch.autograd.grad(ratio_divergence(logits, valid, ratio), logits)
        logits = (logits - 200 * slope).detach().requires_grad_(True)
    assert float(logits.detach().sigmoid().mean()) == pytest.approx(ratio, abs=0.01)
    assert float(ratio_divergence(logits.detach(), valid, ratio)) == pytest.approx(0, abs=1e-4)


def test_the_entropy_alone_makes_predictions_surer_and_the_ratio_of_a_batch_is_no_images_own() -> None:
    logits = torch.tensor([-1.0, 1.0], requires_grad=True)
    (slope,) = torch.autograd.grad(
        weighted_entropy(logits.reshape(1, 1, 1, 2), torch.ones(1, 1, 1, 2), 0.5).sum(), logits
    )
    assert slope[0] > 0 > slope[1]  # down the slope both move away from 0
    large, small = torch.full((1, 1, 4, 4), 20.0), torch.full((1, 1, 4, 4), -20.0)
    both = torch.cat([large, small])
    assert float(ratio_divergence(both, torch.ones_like(both), 0.5)) == pytest.approx(0, abs=1e-6)


def test_without_the_sources_foreground_it_says_what_is_missing(sites: Sequence[Path]) -> None:
    with pytest.raises(StudyError, match="expects the sources' mean foreground, found none"):
        class_ratio.objective(context(sites, last_stage("class-ratio"), "target", prior=None))


# masked image consistency


def seen_by_the_student(of: TaskContext, module: object) -> tuple[Tensor, Tensor]:
    """The loss of one batch, and what the trained branch saw of it."""
    inputs: list[Tensor] = []
    objective = module.objective(of)  # type: ignore[attr-defined]
    hook = of.networks.target_branch.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    frames = of.data.draw("train", 4, torch.Generator().manual_seed(0))
    loss = objective.loss(frames, torch.Generator().manual_seed(1)).per_frame
    hook.remove()
    (x,) = inputs[-1:]
    return loss.detach(), x


def test_the_student_sees_three_blocks_in_ten_of_what_self_training_shows_it(sites: Sequence[Path]) -> None:
    stage = last_stage("masked-consistency")
    own = context(sites, tiny.study(stages=FORK).stages[-1], "target")
    of = context(sites, stage, "target")
    plain_loss, plain = seen_by_the_student(own, self_train)
    loss, x = seen_by_the_student(of, masked_consistency)
    shown = (x != 0).float()
    assert torch.equal(x, plain * shown)
    blocks = torch.nn.functional.max_pool2d(shown, 8)
    textured = torch.nn.functional.max_pool2d((plain != 0).float(), 8)
    assert float(blocks.sum()) < 0.5 * float(textured.sum())
    assert not torch.allclose(loss, plain_loss)


def test_with_nothing_hidden_it_is_self_training(sites: Sequence[Path]) -> None:
    stage = last_stage("masked-consistency")
    assert stage.target is not None
    barely = stage.model_copy(update={"target": stage.target.model_copy(update={"mask_ratio": 1e-6})})
    own = context(sites, tiny.study(stages=FORK).stages[-1], "target")
    loss, x = seen_by_the_student(context(sites, barely, "target"), masked_consistency)
    plain_loss, plain = seen_by_the_student(own, self_train)
    assert torch.equal(x, plain)
    assert torch.equal(loss, plain_loss)


# mean teacher


@pytest.mark.parametrize("variant", ["mean-teacher", "all"])
def test_the_mean_teacher_follows_its_students_and_ours_stays_as_it_was_received(
    variant: str, sites: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = variant == "mean-teacher"
    stage = last_stage(variant)
    if moves:
        quick = {"teacher_decay": 0.5, "remake_every": 2}
        stage = stage.model_copy(update={"target": stage.target and stage.target.model_copy(update=quick)})
    made: list[self_train.Teacher] = []
    asked: list[int] = []

    class Seen(self_train.Teacher):
        def __init__(self, of: TaskContext) -> None:
            super().__init__(of)
            made.append(self)

    predict = self_train.predict_maps
    monkeypatch.setattr(mean_teacher if moves else self_train, "Teacher", Seen)
    monkeypatch.setattr(self_train, "predict_maps", lambda *given: asked.append(1) or predict(*given))
    of = context(sites, stage, "target")
    received = {name: x.clone() for name, x in of.networks.target_branch.state_dict().items()}
    drawn = perform(of).drawn
    (teacher,) = made
    own, students = teacher.networks.target_branch.state_dict(), of.networks.target_branch.state_dict()
    weights = [name for name in received if not torch.equal(students[name], received[name])]
    assert weights
    assert all(torch.equal(own[name], received[name]) != moves for name in weights)
    assert not any(torch.equal(own[name], students[name]) for name in weights)
    assert (len(asked) > len(of.data.overview("train", 32)) + drawn) == moves, "made anew, or once a round"


# Fourier domain adaptation


def pictures(*sides: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    grey = torch.nn.functional.avg_pool2d(torch.rand(2, 1, sides[0] + 4, sides[1] + 4, generator=draw), 5, stride=1)
    first, second = grey[:, 0] - grey.mean() + torch.tensor([0.4, 0.6])[:, None, None]
    return first, second


@pytest.mark.parametrize("sides", [(64, 64), (48, 64), (37, 52)])
def test_the_low_amplitudes_are_the_targets_and_all_phases_and_the_rest_the_images_own(sides: tuple[int, int]) -> None:
    image, target = pictures(*sides)
    low = low_amplitudes(target, 3)
    assert low.shape == (7, 4)
    assert float(low[3, 0]) == pytest.approx(float(target.mean()), abs=1e-6)  # no cycles: the mean grey level
    changed = translated(image, low)
    before, after, of_target = (torch.fft.fft2(x, norm="forward") for x in (image, changed, target))
    rows, columns = (torch.fft.fftfreq(side, 1 / side).round().abs() for side in sides)
    window = (rows[:, None] <= 3) & (columns[None] <= 3)
    assert torch.allclose(after.abs()[window], of_target.abs()[window], atol=1e-6)
    assert torch.allclose(after[~window], before[~window], atol=1e-6)
    strong = window & (before.abs() > 1e-4) & (after.abs() > 1e-4)
    assert torch.allclose(
        torch.polar(torch.tensor(1.0), (after / before).angle())[strong].real, torch.tensor(1.0), atol=1e-3
    )


def test_an_image_with_its_own_amplitudes_stays_as_it_is() -> None:
    image, _ = pictures(40, 64)
    assert torch.allclose(translated(image, low_amplitudes(image, 3)), image, atol=1e-6)


def test_the_source_trains_on_images_with_the_targets_mean_amplitudes(sites: Sequence[Path]) -> None:
    of = tiny.study(stages=FORK)
    north, east = (Dataset(load_site(folder), of) for folder in sites)
    (variant,) = chosen(["fourier"])
    assert variant.knowing is not None
    baseline = variant.stages(of)
    stages = variant.knowing(baseline, [east])
    for stage, plain in zip(stages, baseline, strict=True):
        assert isinstance(stage.source, FourierSupervise)
        assert isinstance(plain.source, Supervise)
        shared = stage.source.model_dump(exclude={"task", "amplitudes"})
        assert shared == plain.source.model_dump(exclude={"task"})
    task = stages[0].source
    assert isinstance(task, FourierSupervise)
    # the target is darker: 0.6 of the source's grey levels
    frame = north.site.frames_of("train")[0]
    ours, seen = north.labelled(frame), Translated(north.site, of, task.amplitudes).labelled(frame)
    assert float(seen.image[seen.valid].mean()) == pytest.approx(task.amplitudes[1][0], abs=0.01)
    assert float(seen.image[seen.valid].mean()) < 0.75 * float(ours.image[ours.valid].mean())
    assert float(seen.image[~seen.valid].abs().sum()) == 0
    assert seen.truth is not None
    assert ours.truth is not None
    assert torch.equal(seen.truth, ours.truth)
    assert torch.equal(north.labelled(frame).image, ours.image)  # and the site's own images stay


def test_the_task_reads_the_translated_images(sites: Sequence[Path]) -> None:
    of = tiny.study(stages=FORK)
    (variant,) = chosen(["fourier"])
    assert variant.knowing is not None
    stages = variant.knowing(variant.stages(of), [Dataset(load_site(sites[1]), of)])
    own = context(sites, variant.stages(of)[0], "source")
    other = context(sites, stages[0], "source")
    frames = own.data.draw("train", 4, torch.Generator().manual_seed(0))
    plain = supervised_loss(own, frames)
    assert not torch.allclose(plain, supervised_loss(other, frames))
    task = stages[0].source
    assert isinstance(task, FourierSupervise)
    swapped = replace(own, data=Translated(own.data.site, of, task.amplitudes))
    assert torch.equal(supervised_loss(swapped, frames), supervised_loss(other, frames))


def supervised_loss(of: TaskContext, frames: Sequence) -> Tensor:
    return objective_of(of).loss(frames, torch.Generator().manual_seed(5)).per_frame.detach()


# in an ablation


def test_another_version_of_a_rival_is_trained_anew(
    sites: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = tiny.study(stages=FORK)
    stages = chosen(["class-ratio"])[0].stages(of), of.stages
    opened = [load_site(folder) for folder in sites]
    before = [StageCache(of, opened, tmp_path).folder(own) for own in stages]
    digest = stage_cache.code_digest
    monkeypatch.setattr(stage_cache, "code_digest", lambda name: "new" if "class_ratio" in name else digest(name))
    after = [StageCache(of, opened, tmp_path).folder(own) for own in stages]
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_an_ablation_sets_the_rivals_beside_the_method(sites: Sequence[Path], tmp_path: Path) -> None:
    tiny.write_study(tmp_path / "study.yaml", stages=[stage | {"rounds": 1} for stage in FORK])
    # in so few steps no pseudo-label is made anew, and a mean teacher is the method
    rivals = [rival for rival in RIVALS if rival.name != "mean-teacher"]
    content = {
        "name": "tiny-rivals",
        "study": "study.yaml",
        "seeds": [0],
        "data": [{"name": "bands", "sites": [str(site) for site in sites]}],
        "variants": ["baseline", "all", *(rival.name for rival in rivals)],
    }
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump(content))
    ablation = load_ablation(tmp_path / "ablation.yaml")
    cell = Cell(ablation, ablation.data[0], 0, tmp_path / "out")
    cell.out.mkdir()
    run_cell(cell)
    table = summarise(ablation, [cell])["data"]["bands"]
    rows = [list(rival.rows)[-1] for rival in rivals]
    assert [asked["against"] for asked in table["contrasts"] if asked["against"] in rows] == rows
    dice = {row: own["target"]["seeds"] for row, own in table["rows"].items()}
    assert len({json.dumps(dice[row]) for row in ("baseline", "all stages, as released", *rows)}) == 5
