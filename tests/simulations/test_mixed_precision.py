"""Convolutions in bfloat16: what comes out stays float32 and close; privacy and the CPU never have it."""

import copy

import pytest
import torch
from private import private as private_study
from tiny import study
from torch import Tensor

from common.infusion import fuse
from common.networks import Networks, initial_networks

PARTS = ("source_branch", "target_branch", "baseline", "mim_decoder", "projector", "infusion_head")


def outputs(networks: Networks, x: Tensor) -> list[Tensor]:
    """Every way in which a task goes through the networks."""
    source, target = networks.source_branch(x), networks.target_branch(x)
    features = networks.target_branch.encoder(x)
    fused = fuse(networks.infusion_head, source, target).infusion
    return [source, networks.baseline(x), fused, networks.mim_decoder(features), networks.projector(features)]


@pytest.fixture
def mixed() -> Networks:
    """Networks whose autocast is the CPU's: the same code, and torch has bfloat16 for it too."""
    networks = initial_networks(study())
    networks._mix_precision("cpu")
    return networks


def test_results_and_gradients_are_float32_and_close_to_those_of_full_precision(mixed: Networks) -> None:
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    exact = outputs(initial_networks(study()), x)
    found = outputs(mixed, x)
    assert any(not torch.equal(a, b) for a, b in zip(found, exact, strict=True))  # it did compute otherwise
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1)
    sum((y.square().mean() for y in found), torch.zeros(())).backward()
    for name in PARTS:
        for parameter in mixed.component(name).parameters():
            assert parameter.dtype == torch.float32
            assert parameter.grad is None or (parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all())


def test_a_copy_computes_with_its_own_weights(mixed: Networks) -> None:
    """As the teacher of `self_train`, which is a copy of the networks that its students move."""
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    copied = copy.deepcopy(mixed)
    before = outputs(copied, x)
    with torch.no_grad():
        for parameter in mixed.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(outputs(copied, x), before, strict=True))


def test_weights_travel_as_before(mixed: Networks) -> None:
    plain = initial_networks(study())
    assert mixed.shapes(PARTS) == plain.shapes(PARTS)
    mixed.load(plain.export(PARTS))
    assert all(value.dtype == "float32" for value in mixed.export(PARTS).values())


@pytest.mark.parametrize("private", [False, True])
def test_it_is_asked_for_on_a_gpu_only_and_never_under_privacy(private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Networks, "_compute_on", lambda self, device: None)
    monkeypatch.setattr(Networks, "_mix_precision", lambda self, device: calls.append(device))
    chosen = private_study() if private else study()
    Networks(chosen, "cuda", mixed_precision=True)
    Networks(chosen, "cuda")
    Networks(chosen, "cpu", mixed_precision=True)
    assert calls == ([] if private else ["cuda"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_close_to_the_cpu_s_results() -> None:
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    on_cpu = initial_networks(study())
    on_gpu = Networks(study(), "cuda", mixed_precision=True)
    on_gpu.load(on_cpu.export(PARTS))
    for a, b in zip(outputs(on_gpu, x), outputs(on_cpu, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1)
