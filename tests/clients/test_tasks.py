"""The tasks: each learns what it is for, and none opens a mask that it may not see."""

import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hospital import with_policy
from tiny import answer, one_stage, refusal, repeated, request, study, workers, write_site
from torch import Tensor
from torch.nn import functional as F

from clients.data.frames import Frame
from clients.learning.self_supervise import random_masking
from clients.learning.self_train import Teacher, objective, prior_threshold
from clients.learning.training import TaskContext
from clients.node.worker import Worker
from common.components import BRANCHES, Tensors
from common.infusion import fuse
from common.messages import TaskRequest, unpack
from common.networks import InfusionHead, initial_networks
from common.stage import Round
from server.run import run_study
from server.transport import Failure
from simulations.local import LocalTransport

ENCODER = ("target_branch.encoder", "mim_decoder", "projector")
TASKS: list[tuple[str, dict[str, Any], str, float]] = [
    ("source", {"task": "supervise", "trains": BRANCHES}, "loss", 0.9),
    ("source", {"task": "infuse", "learning_rate": 0.02}, "loss", 0.96),
    ("target", {"task": "self_supervise", "trains": ENCODER}, "reconstruction_loss", 0.98),
    ("target", {"task": "self_supervise", "trains": ENCODER}, "contrast_loss", 0.8),
    ("target", {"task": "self_train", "trains": BRANCHES}, "loss", 0.97),
]


@pytest.mark.parametrize(("role", "task", "metric", "factor"), TASKS, ids=lambda x: x if isinstance(x, str) else "")
def test_every_training_task_lowers_its_loss(
    role: str, task: dict, metric: str, factor: float, pair: Sequence[Path], trained: Tensors
) -> None:
    of = one_stage(**{role: task | {"steps": 8}})
    (worker,) = workers(of, [pair[role == "target"]])
    start = trained if task["task"] in ("infuse", "self_train") else {}
    _, seen = repeated(of, worker, start, times=4)
    losses = [metrics[metric] for metrics in seen]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < factor * losses[0]


def test_supervision_finds_the_band_and_self_training_keeps_it(pair: Sequence[Path], trained: Tensors) -> None:
    of = study()
    north, east = workers(of, pair)
    assert answer(north, request(of, "score", "source", trained))[0].metrics["val_dice"] > 0.8
    self_train = one_stage(target={"task": "self_train", "trains": BRANCHES, "steps": 8})
    after, _ = repeated(self_train, workers(self_train, pair[1:])[0], trained, times=2)
    dice = [
        answer(east, request(of, "evaluate", "target", model))[0].metrics["infusion/dice/mean"]
        for model in ({}, trained, after)
    ]
    assert dice[1] > dice[0] + 0.1
    assert dice[2] > dice[1] - 0.1


def test_a_source_measures_the_branch_that_it_receives_where_a_round_may_be_released(
    pair: Sequence[Path], trained: Tensors
) -> None:
    """A model that lost the labelled probe is not released; the whole of it does not travel to a source here."""
    supervise = {"task": "supervise", "trains": ["target_branch"], "steps": 1}
    of = one_stage(source=supervise, target={"task": "self_train", "trains": ["target_branch"], "steps": 1})
    (north,) = workers(of, pair[:1])

    good, untrained = (answer(north, request(of, "only", "source", model))[0].metrics for model in (trained, {}))

    assert good["val_dice"] > 0.8
    assert untrained["val_dice"] < 0.5
    alone = one_stage(source=supervise)
    assert "val_dice" not in answer(workers(alone, pair[:1])[0], request(alone, "only", "source"))[0].metrics


@pytest.mark.parametrize("settings", [{"reconstruction_weight": 0}, {"contrast_weight": 0}])
def test_a_term_of_weight_zero_trains_nothing_of_its_own(settings: dict, pair: Sequence[Path]) -> None:
    # no decay, which would move tensors without a gradient
    task = {"task": "self_supervise", "trains": ENCODER, "steps": 2} | settings
    of = study(stages=[{"name": "only", "rounds": 1, "target": task}], weight_decay=0)
    (east,) = workers(of, pair[1:])
    idle = "mim_decoder" if "reconstruction_weight" in settings else "projector"
    _, updates = answer(east, request(of, "only", "target"))
    moved = {name.partition("/")[0] for name, x in updates.items() if x.any()}
    assert moved == set(ENCODER) - {idle}


@pytest.mark.parametrize(("side", "block", "ratio"), [(64, 8, 0.6), (32, 8, 0.5), (48, 10, 0.3)])
def test_whole_blocks_are_hidden_as_many_in_each_image(side: int, block: int, ratio: float) -> None:
    hidden = random_masking(5, side, block, ratio, torch.Generator().manual_seed(0))
    assert hidden.shape == (5, 1, side, side)
    cells = hidden[:, 0, ::block, ::block]
    expected = round(ratio * cells[0].numel())
    assert cells.sum((1, 2)).tolist() == [expected] * 5
    whole = F.interpolate(cells[:, None], scale_factor=block)[..., :side, :side]
    assert torch.equal(whole, hidden)
    assert len({x.numpy().tobytes() for x in hidden}) == 5


UNIFORM = [torch.linspace(0, 1, 1024).reshape(32, 32)] * 3


@pytest.mark.parametrize(
    ("prior", "threshold"),
    [
        (None, 0.5),
        (0.5, 0.5),
        (0.34, 0.5),
        (0.74, 0.5),
        (0.3, 0.56),
        (0.8, 0.46),
        (0.01, 0.9),
        (1.0, 0.32),
    ],
)
def test_the_threshold_moves_only_outside_the_tolerance_and_no_further(prior: float | None, threshold: float) -> None:
    assert prior_threshold(UNIFORM, prior, 1.5, 32) == pytest.approx(threshold)


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_an_image_that_the_teacher_is_unsure_of_stays_in_the_batch(pair: Sequence[Path], power: float) -> None:
    """Else weights that are sure of one patient alone would make an update of many images that patient's."""
    self_train = {"task": "self_train", "trains": ["target_branch"], "steps": 1, "confidence_power": power}
    of = study(batch_size=4, stages=[{"name": "only", "rounds": 1, "target": self_train}])
    (east,) = workers(of, pair[1:])
    networks = initial_networks(of)
    task = of.stages[0].target
    assert task is not None
    context = TaskContext(
        of, Round(0, of.stages[0], 0), task, networks, east.data, east.site.config.policy, east.secret
    )

    class SureOfOne(Teacher):
        def says(self, frame: Frame) -> Tensor:
            p = torch.full_like(super().says(frame), 0.5 + 1e-6)
            p[: len(p) // 2] += 0.4 if frame.patient == first.patient else 0.0
            return p

    first, *others = east.data.overview("train", 4)
    teach = objective(context, teacher=SureOfOne(context))
    losses = teach.loss([first, *others], torch.Generator().manual_seed(0)).per_frame
    weights = [p.requires_grad_() for p in networks.component("target_branch.decoder").parameters()]
    norms = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, retain_graph=True)]).norm()
        for loss in losses
    ]
    assert min(norms) > 0.1 * norms[0]


def test_pseudo_labels_in_the_padding_are_not_counted(pair: Sequence[Path]) -> None:
    self_train = {"task": "self_train", "trains": BRANCHES, "steps": 1}
    of = study(batch_size=6, stages=[{"name": "only", "rounds": 1, "target": self_train}])
    (east,) = workers(of, pair[1:])
    # no training makes such a bias
    east = Worker(with_policy(east.site, implausible_weights="report"), of, east.secret)
    all_foreground = {f"{branch}.decoder/final_conv.bias": np.array([20], np.float32) for branch in BRANCHES}
    header, _ = answer(east, request(of, "only", "target", all_foreground, prior=None))
    view = 27 / 32  # 40 of 48 rows, on a tile of 32
    assert header.metrics["pseudo_foreground_fraction"] == pytest.approx(view, abs=0.0005)


def dice(p: Tensor, truth: Tensor) -> float:
    found = (p > 0.5).float()
    return float(2 * (found * truth).sum() / (found.sum() + truth.sum()))


def test_the_infusion_head_can_beat_both_branches_and_their_average() -> None:
    """Each branch is right on one half with moderate confidence, and guesses loudly on the other."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 1, 8, 8, generator=generator)
    truth = F.interpolate((coarse > 0.6).float(), scale_factor=4)
    right = (2 * truth - 1) * 2
    guess = 8 * torch.sign(torch.randn(truth.shape, generator=generator))
    left = torch.zeros_like(truth)
    left[..., :16] = 1
    source, target = torch.where(left > 0, right, guess), torch.where(left > 0, guess, right)
    torch.manual_seed(0)
    head = InfusionHead()
    with torch.no_grad():
        untrained = fuse(head, source, target)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(120):
        fused = fuse(head, source, target).infusion.clamp(1e-6, 1 - 1e-6)
        optimizer.zero_grad()
        F.binary_cross_entropy(fused, truth).backward()
        optimizer.step()
    with torch.no_grad():
        trained_head = fuse(head, source, target)
    beaten = [dice(p, truth) for p in (untrained.source_branch, untrained.target_branch, untrained.average)]
    assert dice(trained_head.infusion, truth) > max(beaten) + 0.1
    assert float(trained_head.weight[left > 0].mean()) > 0.7
    assert float(trained_head.weight[left == 0].mean()) < 0.3


class Watched(LocalTransport):
    """Notes which files each site opens in which task."""

    current: tuple[str, str] | None = None

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        for site, payload in requests.items():
            header, _ = unpack(payload)
            assert isinstance(header, TaskRequest)
            Watched.current = (site, header.task)
            yield from super().exchange({site: payload}, task, deadline_s)
            Watched.current = None


@pytest.fixture(scope="module")
def opened(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], set[str]]:
    """(site, task) -> kind and split of the files that were opened in it, e.g. `masks/test`."""
    seen: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def hook(event: str, arguments: tuple) -> None:  # an audit hook stays: it must be cheap when idle
        if event == "open" and Watched.current and isinstance(arguments[0], str):
            path = Path(arguments[0])
            if path.suffix == ".png":
                seen[Watched.current].add(f"{path.parent.name}/{path.stem.split('-')[2]}")

    sys.addaudithook(hook)
    of = study()
    run_study(of, Watched(workers(of, pair)), tmp_path_factory.mktemp("watched") / "run")
    return seen


def test_nothing_but_the_evaluation_opens_a_target_s_masks(opened: Mapping[tuple[str, str], set[str]]) -> None:
    masks = {task for (site, task), kinds in opened.items() if site == "east" and "masks/test" in kinds}
    assert masks == {"evaluate"}


def test_nothing_but_the_evaluation_opens_test_images(opened: Mapping[tuple[str, str], set[str]]) -> None:
    tasks = {task for (_, task), kinds in opened.items() if {"images/test", "masks/test"} & kinds}
    assert tasks == {"evaluate"}


def test_the_head_learns_from_patients_that_no_branch_was_trained_on(
    opened: Mapping[tuple[str, str], set[str]],
) -> None:
    assert opened["north", "infuse"] & {"masks/train", "masks/calibrate"} == {"masks/calibrate"}
    assert opened["north", "supervise"] == {"images/train", "masks/train", "images/val", "masks/val"}


def test_a_target_s_lost_masks_disturb_nothing_but_its_evaluation(tmp_path: Path, pair: Sequence[Path]) -> None:
    of = study()
    folder = write_site(tmp_path / "east", "target", seed=1, gain=0.7)
    (whole,), (bare,) = workers(of, pair[1:]), workers(of, [folder])
    shutil.rmtree(folder / "masks")
    for stage in ("pretrain", "adapt", "refine", "infuse", "score"):
        payload = request(of, stage, "target")
        assert bare.handle(payload) == whole.handle(payload)
    assert refusal(bare.handle(request(of, "evaluate", "target"))).code == "site-error"
