"""Weights made to copy images are refused before an image is shown to them; trained ones never are."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from empty_trap import EmptyTrap
from hospital import with_policy
from reconstruction import reconstruct
from tiny import answer, refusal, request, study, workers

from clients.learning.plausibility import concentration, likeness
from clients.node.worker import Worker
from common.components import Role, Tensors
from common.networks import initial_networks
from common.study import Study, parse_study
from server.run import run_study
from simulations.audit.ask import Refused
from simulations.audit.trap import MimTrap, SuperviseTrap
from simulations.local import LocalTransport

FIRST = "source_branch.encoder/conv_0.conv_0.conv.weight"
MIDDLE = "source_branch.encoder/down_2.convs.conv_0.conv.weight"
NORM = "source_branch.encoder/down_2.convs.conv_0.adn.N.weight"
BIAS = "source_branch.decoder/final_conv.bias"
SUPERVISED = study(network={"features": [8] * 6, "norm": "group"})


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Tensors:
    whole = initial_networks(SUPERVISED).export(("source_branch.encoder", "source_branch.decoder"))
    assert name in whole, sorted(whole)
    return whole | {name: change(whole[name].copy()).astype(np.float32)}


def first_of(x: np.ndarray, axis: int, factor: float) -> np.ndarray:
    index: list[slice | int] = [slice(None)] * x.ndim
    index[axis] = 0
    x[tuple(index)] *= factor
    return x


def one_hot(x: np.ndarray) -> np.ndarray:
    spread = np.sqrt(np.square(x).mean())
    x[:] = 0
    x.reshape(-1)[0] = spread * np.sqrt(x.size)
    return x


CRAFTED: Mapping[str, Tensors] = {
    "blind": changed(FIRST, np.zeros_like),
    "larger by orders": changed(MIDDLE, lambda x: 100 * x),
    "smaller by orders": changed(MIDDLE, lambda x: x / 100),
    "carried by one weight": changed(MIDDLE, one_hot),
    "a filter switched off": changed(MIDDLE, lambda x: first_of(x, 0, 0.0)),
    "an input cut off": changed(MIDDLE, lambda x: first_of(x, 1, 0.0)),
    "a filter that drowns the others": changed(MIDDLE, lambda x: first_of(x, 0, 50.0)),
    "a normalisation that hides the scale": changed(NORM, lambda x: 1e-5 * x),
    "a normalisation's channel all but off": changed(NORM, lambda x: first_of(x, 0, 0.1)),
    "one filter over and over": changed(MIDDLE, lambda x: np.broadcast_to(x[:1], x.shape)),
    "saturated by a bias": changed(BIAS, lambda x: x + 100),
    "saturated by a normalisation": changed(NORM, lambda x: 100 * x),
}


def test_a_channel_that_long_training_let_go_of_passes(pair: Sequence[Path]) -> None:
    (north,) = workers(SUPERVISED, pair[:1])
    tensors = changed(NORM, lambda x: first_of(x, 0, 0.24))  # as in a student after 15 rounds
    answer(north, request(SUPERVISED, "pretrain", "source", tensors))


@pytest.mark.parametrize("tensors", CRAFTED.values(), ids=CRAFTED)
def test_weights_that_no_training_makes_are_refused_unless_the_policy_only_wants_a_report(
    tensors: Tensors, pair: Sequence[Path], caplog: pytest.LogCaptureFixture
) -> None:
    (north,) = workers(SUPERVISED, pair[:1])
    payload = request(SUPERVISED, "pretrain", "source", tensors)
    assert refusal(north.handle(payload)).code == "implausible-weights"
    reporting = Worker(with_policy(north.site, implausible_weights="report"), SUPERVISED, north.secret)
    caplog.clear()
    answer(reporting, payload)
    assert "implausible-weights" in caplog.text


PUBLIC = study(network={"kind": "efficient_unet"})
EXPAND = "source_branch.encoder/levels.3.0.expand.weight"
SCALE = "source_branch.encoder/levels.3.0.expand.scale"
SHIFT = "source_branch.encoder/levels.3.0.project.bias"


def changed_public(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Tensors:
    whole = initial_networks(PUBLIC).export(("source_branch.encoder", "source_branch.decoder"))
    assert name in whole, sorted(whole)
    return whole | {name: change(whole[name].copy()).astype(np.float32)}


def mixed(x: np.ndarray, share: float) -> np.ndarray:
    """Return a tensor with a share of what it was, as long as before."""
    noise = np.random.default_rng(0).normal(size=x.shape)
    return share * x + np.sqrt(1 - share**2) * noise * np.linalg.norm(x) / np.linalg.norm(noise)


def hushed() -> Tensors:
    """Return public weights that resemble what they were by the cosine, and whose last level all but ignores images."""
    whole = initial_networks(PUBLIC).export(("source_branch.encoder", "source_branch.decoder"))
    for block in ("source_branch.encoder/levels.3.0.", "source_branch.encoder/levels.3.3."):
        heard = np.ones(len(whole[block + "project.weight"][0]), bool)
        for layer in ("expand", "depthwise"):
            scale = whole[f"{block}{layer}.scale"]
            order = np.argsort(np.abs(scale))
            small = order[np.cumsum(scale[order] ** 2) <= 0.27 * np.sum(scale**2)]  # a cosine of 0.85
            scale[small], heard[small] = 0, False
        whole[block + "project.weight"][:, heard] /= 3.9
    return whole


CRAFTED_PUBLIC: Mapping[str, Tensors] = {
    "blind": changed_public("source_branch.encoder/stem.weight", np.zeros_like),
    "half of the channels blind": changed_public(EXPAND, lambda x: x * (np.arange(len(x)) % 2)[:, None, None, None]),
    "others, as large": changed_public(EXPAND, lambda x: mixed(x, 0.6)),
    "upside down": changed_public(EXPAND, lambda x: -x),
    "larger by orders": changed_public(EXPAND, lambda x: 100 * x),
    "one filter over and over": changed_public(EXPAND, lambda x: np.broadcast_to(x[:1], x.shape)),
    "a filter switched off": changed_public(EXPAND, lambda x: first_of(x, 0, 0.0)),
    "an input that drowns the others": changed_public(EXPAND, lambda x: first_of(x, 1, 50.0)),
    "scales of nothing": changed_public(SCALE, np.zeros_like),
    "saturated by a shift": changed_public(SHIFT, lambda x: x + 100),
    "most channels scaled to nothing": hushed(),
    "what was drawn is made": changed_public("source_branch.encoder/full.0.weight", one_hot),
}


@pytest.mark.parametrize("tensors", CRAFTED_PUBLIC.values(), ids=CRAFTED_PUBLIC)
def test_weights_that_do_not_resemble_the_public_ones_that_they_began_as_are_refused(
    tensors: Tensors, pair: Sequence[Path]
) -> None:
    (north,) = workers(PUBLIC, pair[:1])
    assert refusal(north.handle(request(PUBLIC, "pretrain", "source", tensors))).code == "implausible-weights"


def test_weights_as_far_from_the_public_ones_as_honest_training_goes_pass(pair: Sequence[Path]) -> None:
    (north,) = workers(PUBLIC, pair[:1])
    whole = initial_networks(PUBLIC).export(("source_branch.encoder", "source_branch.decoder"))
    public = initial_networks(PUBLIC).public()
    far = {name: mixed(x, 0.95).astype(np.float32) if name in public and x.ndim > 1 else x for name, x in whole.items()}
    answer(north, request(PUBLIC, "pretrain", "source", far))


def trapped(role: Role, network: Mapping[str, object]) -> Study:
    """A study of one step on one patient, whose task an attacker would choose."""
    task = (
        {"task": "supervise", "trains": ["source_branch"], "steps": 1, "warmup_steps": 0}
        if role == "source"
        else {
            "task": "self_supervise",
            "trains": ["target_branch.encoder", "mim_decoder", "projector"],
            "steps": 1,
            "warmup_steps": 0,
            "mask_ratio": 0.99,
            "contrast_weight": 0.0,
        }
    )
    content = {
        "name": "trapped",
        "image": {"size": 32, "geometry": "letterbox", "spacing_mm": None},
        "network": dict(network),
        "batch_size": 1,
        "weight_decay": 0.0,
        "stages": [{"name": "pretrain", "rounds": 4, role: task}],
    }
    return parse_study(content, origin="tests")


LOOSE = {"max_mask_ratio": 1.0, "max_learning_rate": 1.0, "max_mask_side": 1.0}


@pytest.mark.parametrize(
    ("role", "trap", "network"),
    [
        ("source", SuperviseTrap, {"norm": "group"}),
        ("target", MimTrap, {"norm": "group"}),
        ("target", MimTrap, {"kind": "efficient_unet"}),
    ],
    ids=["source", "target", "public-weights"],
)
def test_weights_of_a_blind_encoder_that_rebuild_images_are_refused_even_where_every_bound_of_the_study_is_off(
    role: Role, trap: type[MimTrap | SuperviseTrap], network: Mapping[str, object], pair: Sequence[Path]
) -> None:
    of = trapped(role, network)
    (site,) = (worker.site for worker in workers(of, pair[:1] if role == "source" else pair[1:]))
    worker = Worker(with_policy(site, **LOOSE), of, bytes(32))
    with pytest.raises(Refused, match="implausible-weights"):
        reconstruct(worker, of, 1, trap(of))
    if role == "target":  # so it is an attack; of the other one see tests/simulations/test_audit.py
        open_to_all = Worker(with_policy(site, **LOOSE, implausible_weights="report"), of, bytes(32))
        assert max(match.correlation for match in reconstruct(open_to_all, of, 1, trap(of))) > 0.8


@pytest.mark.parametrize("network", [{"norm": "group"}, {"kind": "efficient_unet"}], ids=["seeded", "public-weights"])
def test_where_all_is_hidden_weights_that_look_trained_rebuild_images_and_only_the_bounds_of_the_study_refuse_it(
    network: Mapping[str, object], pair: Sequence[Path]
) -> None:
    of = trapped("target", network)
    (site,) = (worker.site for worker in workers(of, pair[1:]))
    found = reconstruct(Worker(with_policy(site, **LOOSE), of, bytes(32)), of, 2, EmptyTrap(of))
    assert max(match.correlation for match in found) > 0.8
    with pytest.raises(Refused, match="policy-limit"):
        reconstruct(Worker(with_policy(site), of, bytes(32)), of, 1, EmptyTrap(of))


def test_a_whole_run_of_honest_training_never_looks_made(
    pair: Sequence[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fast = {"learning_rate": 1e-2, "steps": 6}
    stages = [stage.model_dump(mode="json") for stage in SUPERVISED.stages]
    for stage in stages:
        for role in ("source", "target"):
            if stage[role] and stage[role]["task"] != "score":
                stage[role] |= fast
    of = study(network={"features": [8] * 6, "norm": "group"}, stages=stages)
    run_study(of, LocalTransport(workers(of, pair)), tmp_path / "run")
    assert "implausible" not in caplog.text


def test_likeness_is_one_for_equal_filters_and_next_to_nothing_for_random_ones() -> None:
    random = np.random.default_rng(0).normal(size=(32, 16, 3, 3))
    assert likeness(np.broadcast_to(random[:1], random.shape)) == pytest.approx(1.0)
    assert likeness(random) == pytest.approx(1 / 144, rel=0.2)
    assert likeness(np.ones((3, 64))) == likeness(np.ones((8, 9))) == 0.0


def test_concentration_is_one_for_equal_numbers_and_one_over_n_for_a_single_one() -> None:
    assert concentration(np.full(64, -3.0)) == pytest.approx(1.0)
    assert concentration(np.eye(1, 64)) == pytest.approx(1 / 64)
    assert concentration(np.zeros(64)) == 0.0
    assert concentration(np.random.default_rng(0).normal(size=100_000)) == pytest.approx(1 / 3, rel=0.05)
