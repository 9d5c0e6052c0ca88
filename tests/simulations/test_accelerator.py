"""Networks that compute on another device than the images lie on."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from tiny import study
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from common.infusion import fuse
from common.networks import Networks, initial_networks
from simulations.ablation.cells import accelerator
from simulations.simulate import hardware

DEVICE = "pretended"
NETWORKS = ("source_branch", "target_branch", "baseline", "mim_decoder", "projector")


def outputs(networks: Networks, x: Tensor) -> list[Tensor]:
    """Every way in which a task goes through the networks."""
    source, target = networks.source_branch(x), networks.target_branch(x)
    features = networks.target_branch.encoder(x)
    return [
        source,
        networks.baseline(x),
        fuse(networks.infusion_head, source, target).infusion,
        networks.mim_decoder(features),
        networks.projector(features),
    ]


def move(module: nn.Module, *where: Any, **how: Any) -> nn.Module:
    """`Module.to` for tensors without content, which torch's own cannot move."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if where and parameter is not None:
                part._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device=where[0]))
    return module


def step_on_a_pretended_device() -> None:
    """Tensors without content, whose devices torch checks at each operation as it would on a real machine."""
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    nn.Module.to = move  # type: ignore[method-assign, assignment]
    with FakeTensorMode(), torch.autograd.set_multithreading_enabled(False):  # the pretence is one thread's
        x = torch.rand(2, 1, 32, 32)
        networks = Networks(study(), DEVICE)
        for name in NETWORKS:
            assert {p.device.type for p in networks.component(name).parameters()} == {DEVICE}
        with pytest.raises(RuntimeError, match="same device"):  # the pretence does check
            networks.source_branch.decoder([f.cpu() for f in networks.source_branch.encoder(x)])
        found = outputs(networks, x)
        assert {y.device.type for y in found} == {"cpu"}
        sum((y.sum() for y in found), torch.zeros(())).backward()
        parameters = [p for p in networks.parameters() if p.grad is not None]
        assert {p.device.type for p in parameters} == {"cpu", DEVICE}
        torch.optim.AdamW(networks.source_branch.parameters()).step()


def test_images_come_in_and_results_go_out_on_the_cpu() -> None:
    # in a process of its own: torch can be told of a new device only once
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(step_on_a_pretended_device).result()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there, and used")
def test_without_a_gpu_the_cpu_is_used_and_named() -> None:
    assert accelerator() == "cpu"
    assert "no GPU used" in hardware(accelerator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_nearly_the_cpu_s_results_and_its_own_bit_for_bit() -> None:
    torch.backends.cudnn.deterministic = True
    x = torch.rand(2, 1, 32, 32)
    on_cpu = initial_networks(study())
    on_gpu = Networks(study(), accelerator())
    on_gpu.load(on_cpu.export(NETWORKS))
    on_gpu.infusion_head.load_state_dict(on_cpu.infusion_head.state_dict())
    for expected, first, second in zip(outputs(on_cpu, x), outputs(on_gpu, x), outputs(on_gpu, x), strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, expected, rtol=1e-2, atol=1e-2)
