"""The networks: size, what they may be made of, and how their tensors come about and travel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from opacus.validators import ModuleValidator
from tiny import distilling, same, study, workers, write_site
from torch import Tensor, nn

from common.components import BASELINE, STUDENT, component_of
from common.errors import StudyError
from common.infusion import fuse
from common.network_settings import NETWORKS, BasicUNet, EfficientUNet, NetworkSettings, ResidualUNet
from common.networks import BUILDERS, Branch, InfusionHead, MimDecoder, Projector, initial_networks
from server.run import run_study
from simulations.local import LocalTransport

EVERY = (*study().components, *BASELINE)


def images(count: int = 2, side: int = 32) -> Tensor:
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(0))


def test_the_default_branch_has_about_300_000_parameters() -> None:
    assert sum(p.numel() for p in Branch(BasicUNet()).parameters()) == pytest.approx(300_000, rel=0.2)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_a_branch_maps_images_to_one_logit_a_pixel_and_never_mixes_images(norm: str) -> None:
    branch = Branch(BasicUNet(features=(8,) * 6, norm=norm))
    x = images(3, 48)
    together = branch(x)
    assert together.shape == x.shape
    for own, one in zip(together, x, strict=True):
        torch.testing.assert_close(branch(one[None])[0], own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_every_network_can_be_trained_with_differential_privacy(norm: str) -> None:
    network = BasicUNet(norm=norm)
    for module in (Branch(network), MimDecoder(network), Projector(network), InfusionHead()):
        assert ModuleValidator.validate(module.train(), strict=False) == []


def test_initial_tensors_depend_on_seed_and_component_only() -> None:
    torch.manual_seed(1)
    one = initial_networks(study()).export(EVERY)
    torch.manual_seed(2)
    assert same(initial_networks(study(name="other", batch_size=2, stages=study().stages[:1])).export(EVERY), one)
    other = initial_networks(study(seed=1)).export(EVERY)
    weights = [name for name in one if name.endswith("weight") and np.unique(one[name]).size > 1]
    assert {component_of(name) for name in weights} == set(EVERY)
    for name in weights:
        assert not np.array_equal(one[name], other[name]), name
        twin = name.replace("source_branch", "target_branch")
        assert twin == name or not np.array_equal(one[name], one[twin])


def test_a_student_changes_no_tensor_of_the_other_networks() -> None:
    with_student = initial_networks(distilling())
    assert same(with_student.export(EVERY), initial_networks(study()).export(EVERY))
    assert with_student.shapes(STUDENT).keys() == with_student.export(STUDENT).keys()
    with pytest.raises(AttributeError):
        initial_networks(study()).export(STUDENT)


def test_tensors_survive_export_and_load() -> None:
    first, second = initial_networks(study()), initial_networks(study(seed=9))
    exported = first.export(EVERY)
    assert {name: x.shape for name, x in exported.items()} == first.shapes(EVERY)
    assert {x.dtype for x in exported.values()} == {np.dtype(np.float32)}
    second.load(exported)
    assert same(second.export(EVERY), exported)
    assert torch.equal(first.target_branch(images()), second.target_branch(images()))


def test_exported_tensors_are_copies() -> None:
    networks = initial_networks(study())
    exported = networks.export(["projector"])
    kept = {name: x.copy() for name, x in exported.items()}
    for x in exported.values():
        x += 1
    assert same(networks.export(["projector"]), kept)


def test_loading_one_component_leaves_the_others() -> None:
    first, second = initial_networks(study()), initial_networks(study(seed=9))
    before = second.export([name for name in EVERY if name != "projector"])
    second.load(first.export(["projector"]))
    assert same(second.export(["projector"]), first.export(["projector"]))
    assert same(second.export([name for name in EVERY if name != "projector"]), before)


def test_loading_part_of_a_component_fails() -> None:
    exported = initial_networks(study()).export(["projector"])
    exported.popitem()
    with pytest.raises(RuntimeError):
        initial_networks(study()).load(exported)


def test_the_untrained_head_is_the_plain_average_exactly() -> None:
    head = initial_networks(study()).infusion_head
    source, target = images() * 5, images().flip(0) * 3
    fusion = fuse(head, source, target)
    assert torch.equal(fusion.weight, torch.full_like(source, 0.5))
    assert torch.equal(fusion.infusion, (torch.sigmoid(source) + torch.sigmoid(target)) / 2)
    assert torch.equal(fusion.infusion, fusion.average)


def test_the_masked_image_decoder_sees_the_deepest_features_only() -> None:
    networks = initial_networks(study())
    features = networks.target_branch.encoder(images())
    rebuilt = networks.mim_decoder(features)
    assert rebuilt.shape == (2, 1, 32, 32)
    shallow_changed = [torch.randn_like(x) for x in features[:4]] + features[4:]
    assert torch.equal(networks.mim_decoder(shallow_changed), rebuilt)
    deepest_changed = [*features[:4], features[4] + 1]
    assert not torch.equal(networks.mim_decoder(deepest_changed), rebuilt)


def test_the_projector_gives_unit_vectors_at_a_quarter_of_the_resolution() -> None:
    networks = initial_networks(study())
    vectors = networks.projector(networks.target_branch.encoder(images()))
    assert vectors.shape == (2, 32, 8, 8)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2, 8, 8))


KINDS = [
    BasicUNet(),
    ResidualUNet(kind="residual_unet", filters=8, blocks=(1, 1, 1, 1)),
    EfficientUNet(kind="efficient_unet"),
]


def test_every_kind_of_network_is_tried_here() -> None:
    assert {type(network) for network in KINDS} == set(NETWORKS.values())


@pytest.mark.parametrize("network", KINDS, ids=lambda network: network.kind)
def test_a_kind_of_network_has_the_channels_and_the_stride_that_it_declares(network: NetworkSettings) -> None:
    branch, side = Branch(network), 2 * network.stride
    x = images(3, side)
    features = branch.encoder(x)
    assert [f.shape[1:] for f in features] == [(c, side >> i, side >> i) for i, c in enumerate(network.channels)]
    assert features[-1].shape[-1] * network.stride == side
    together = branch(x)
    assert together.shape == x.shape == MimDecoder(network)(features).shape
    assert Projector(network)(features).shape == (3, 32, side // 4, side // 4)
    for module in (branch, MimDecoder(network), Projector(network)):
        assert ModuleValidator.validate(module.train(), strict=False) == []
    for own, one in zip(together, x, strict=True):  # no image sees another
        torch.testing.assert_close(branch(one[None])[0], own, rtol=1e-4, atol=1e-5)


def test_a_network_with_buffers_is_refused_where_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    mixing = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    monkeypatch.setitem(BUILDERS, "basic_unet", lambda network: (mixing, nn.Identity()))
    with pytest.raises(StudyError, match="mix patients"):
        Branch(BasicUNet())


def test_the_larger_network_has_paper_scale() -> None:
    network = ResidualUNet(kind="residual_unet")
    assert sum(p.numel() for p in Branch(network).parameters()) == pytest.approx(6_300_000, rel=0.1)


def test_a_study_with_the_larger_network_runs_to_its_end(tmp_path: Path) -> None:
    of = study(network={"kind": "residual_unet", "filters": 8, "blocks": [1, 1, 1, 1]})
    folders = [write_site(tmp_path / "north", "source"), write_site(tmp_path / "east", "target", seed=1)]
    state = run_study(of, LocalTransport(workers(of, folders)), tmp_path / "run")
    assert state.round == len(of.rounds())
    assert state.released


def test_an_untrained_head_gives_the_source_branch_the_studys_share_everywhere() -> None:
    source, target = images(1), images(2)[1:]

    for share, of in ((0.5, study()), (0.2, study(source_share=0.2))):
        fused = fuse(initial_networks(of).infusion_head, source, target)
        torch.testing.assert_close(fused.weight, torch.full_like(source, share))
        expected = share * torch.sigmoid(source) + (1 - share) * torch.sigmoid(target)
        torch.testing.assert_close(fused.infusion, expected)
    assert study(source_share=0.5).hash() == study().hash()  # a study that is older than the key keeps its name
