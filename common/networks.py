"""The networks behind the components: `Branch(encoder, decoder)`, MIM decoder, projector, infusion head.

A kind of network is its settings (`common.network_settings`), which declare channels and stride, and here an
encoder and a decoder of it: images to feature maps, one a level, and back to one logit a pixel.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from types import MethodType

import numpy as np
import torch
from monai.networks import nets
from torch import Tensor, nn

from common.components import Tensors, component_of
from common.efficient_unet import EfficientEncoder, begin, efficient_unet
from common.errors import StudyError
from common.network_settings import CONTRAST_LEVEL, BasicUNet, Network, ResidualUNet
from common.seeds import derive_seed
from common.study import Study


class BasicEncoder(nn.Module):
    """[B, 1, H, W] -> five feature maps, [B, C_i, H / 2^i, W / 2^i] for i = 0..4."""

    def __init__(self, unet: nets.BasicUNet) -> None:
        super().__init__()
        self.conv_0 = unet.conv_0
        self.down_1, self.down_2, self.down_3, self.down_4 = unet.down_1, unet.down_2, unet.down_3, unet.down_4

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.conv_0(x)]
        for down in (self.down_1, self.down_2, self.down_3, self.down_4):
            features.append(down(features[-1]))
        return features


class BasicDecoder(nn.Module):
    """Five feature maps -> one logit per pixel, [B, 1, H, W]."""

    def __init__(self, unet: nets.BasicUNet) -> None:
        super().__init__()
        self.upcat_4, self.upcat_3 = unet.upcat_4, unet.upcat_3
        self.upcat_2, self.upcat_1 = unet.upcat_2, unet.upcat_1
        self.final_conv = unet.final_conv

    def forward(self, features: list[Tensor]) -> Tensor:
        x0, x1, x2, x3, x4 = features
        up = self.upcat_4(x4, x3)
        up = self.upcat_3(up, x2)
        up = self.upcat_2(up, x1)
        return self.final_conv(self.upcat_1(up, x0))


def basic_unet(network: BasicUNet) -> tuple[nn.Module, nn.Module]:
    """Return encoder and decoder of MONAI's BasicUNet."""
    norm = ("instance", {"affine": True}) if network.norm == "instance" else ("group", {"num_groups": 4})
    unet = nets.BasicUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        features=network.features,
        norm=norm,
        # in-place activations break the per-sample gradients of opacus
        act=("LeakyReLU", {"inplace": False, "negative_slope": 0.1}),
    )
    return BasicEncoder(unet), BasicDecoder(unet)


class ResidualEncoder(nn.Module):
    """[B, 1, H, W] -> four feature maps, [B, C_i, H / 2^i, W / 2^i] for i = 0..3."""

    def __init__(self, unet: nets.SegResNet) -> None:
        super().__init__()
        self.conv_init, self.down_layers = unet.convInit, unet.down_layers

    def forward(self, x: Tensor) -> list[Tensor]:
        features, level = [], self.conv_init(x)
        for down in self.down_layers:
            level = down(level)
            features.append(level)
        return features


class ResidualDecoder(nn.Module):
    """Four feature maps -> one logit per pixel, [B, 1, H, W]; the skip connections add up."""

    def __init__(self, unet: nets.SegResNet) -> None:
        super().__init__()
        self.up_samples, self.up_layers, self.conv_final = unet.up_samples, unet.up_layers, unet.conv_final

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for sample, layer, skip in zip(self.up_samples, self.up_layers, reversed(features[:-1]), strict=True):
            x = layer(sample(x) + skip)
        return self.conv_final(x)


def residual_unet(network: ResidualUNet) -> tuple[nn.Module, nn.Module]:
    """Return encoder and decoder of MONAI's SegResNet."""
    unet = nets.SegResNet(
        spatial_dims=2,
        init_filters=network.filters,
        in_channels=1,
        out_channels=1,
        # in-place activations break the per-sample gradients of opacus
        act=("RELU", {"inplace": False}),
        norm=("GROUP", {"num_groups": 8}),
        blocks_down=network.blocks,
        blocks_up=(1,) * (len(network.blocks) - 1),
    )
    return ResidualEncoder(unet), ResidualDecoder(unet)


#: Kind -> its settings -> encoder and decoder.
BUILDERS: dict[str, Callable[..., tuple[nn.Module, nn.Module]]] = {
    "basic_unet": basic_unet,
    "residual_unet": residual_unet,
    "efficient_unet": efficient_unet,
}


class Branch(nn.Module):
    """An encoder-decoder segmentation network: standardised images [B, 1, H, W] -> logits [B, 1, H, W]."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.encoder, self.decoder = BUILDERS[network.kind](network)
        if buffers := [name for name, _ in self.named_buffers()]:
            raise StudyError(
                f"a network of kind {network.kind} has buffers ({buffers[0]}): statistics such as BatchNorm's mix "
                "patients and would leave the site. Use group normalisation."
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class MimDecoder(nn.Module):
    """Pixels from the deepest features alone, [B, C, H / stride, W / stride] -> [B, 1, H, W].

    No skip connections: with them the shallow layers would inpaint, and the encoder learn nothing.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        deepest, self.stride = network.channels[-1], network.stride
        self.mix = nn.Conv2d(deepest, 2 * deepest, 3, padding=1)
        self.out = nn.Conv2d(2 * deepest, self.stride**2, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        hidden = nn.functional.leaky_relu(self.mix(features[-1]), 0.1)
        return nn.functional.pixel_shuffle(self.out(hidden), self.stride)


class Projector(nn.Module):
    """Encoder features at a quarter of the resolution -> unit vectors [B, 32, H/4, W/4] for contrast."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(network.channels[CONTRAST_LEVEL], 64, 1)
        self.out = nn.Conv2d(64, 32, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        hidden = nn.functional.leaky_relu(self.hidden(features[CONTRAST_LEVEL]), 0.1)
        return nn.functional.normalize(self.out(hidden), dim=1)


class InfusionHead(nn.Module):
    """Confidence-aware weight of the source branch per pixel, and one temperature a branch.

    Reads both probabilities, their entropies after temperature and their disagreement (5 channels);
    the last layer starts at zero but for its bias, so that an untrained head gives the same weight everywhere.

    Args:
        share: that weight, in (0, 1).
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.zeros(2))
        self.hidden = nn.Conv2d(5, 16, 3, padding=1)
        self.out = nn.Conv2d(16, 1, 1)
        self.share = share
        self.reset()

    def reset(self) -> None:
        """Make the head weigh the source branch with its `share` everywhere."""
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.constant_(self.out.bias, math.log(self.share / (1 - self.share)))

    def forward(self, evidence: Tensor) -> Tensor:
        """Return w in (0, 1), [B, 1, H, W], from evidence [B, 5, H, W]."""
        return torch.sigmoid(self.out(nn.functional.leaky_relu(self.hidden(evidence), 0.1)))


class Networks(nn.Module):
    """All networks of a study, addressed by component name, with plain numpy tensors in and out.

    Args:
        device: where branches and pretraining heads compute, e.g. `cuda`. Images still come in and results go
            out on the CPU, so that views, losses and all randomness are the same whatever the device.
        mixed_precision: convolutions in bfloat16 on that device. Weights, gradients, updates and losses stay
            float32; bfloat16 has the range of float32, so that no gradient has to be scaled. Left out in a study
            with differential privacy, whose clipping and noise are of float32 gradients.
    """

    def __init__(self, study: Study, device: str = "cpu", mixed_precision: bool = False) -> None:
        super().__init__()
        self.source_branch = Branch(study.network)
        self.target_branch = Branch(study.network)
        self.baseline = Branch(study.network)
        self.mim_decoder = MimDecoder(study.network)
        self.projector = Projector(study.network)
        self.infusion_head = InfusionHead(study.source_share)
        if study.student is not None:
            self.student = Branch(study.student)
        # a step on a CPU takes an eighth less; torch's stubs leave this form of `to` out
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device != "cpu":
            self._compute_on(device)
            if mixed_precision and study.privacy is None:
                self._mix_precision(device)

    def _compute_on(self, device: str) -> None:
        """Move all but the head, which is too small to be worth it, and have tensors cross at the edges."""
        branches = self._branches()
        for branch in branches:
            branch.encoder.register_forward_pre_hook(lambda _, images: images[0].to(device))
        for network in (*branches, self.mim_decoder, self.projector):
            network.to(device).register_forward_hook(lambda *call: call[-1].cpu())

    def _mix_precision(self, device: str) -> None:
        """Have all but the head compute under autocast, and give their results in float32."""
        branches = self._branches()
        parts = [part for branch in branches for part in (branch.encoder, branch.decoder)]
        cast = torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
        for network in (*parts, self.mim_decoder, self.projector):
            # a method of its own, not a function around that of this network: a copy's has to compute with the copy
            network.forward = MethodType(cast(type(network).forward), network)
        for ends in (*branches, self.mim_decoder, self.projector):
            ends.register_forward_hook(lambda *call: call[-1].float())

    def _branches(self) -> list[Branch]:
        return [module for module in self.children() if isinstance(module, Branch)]

    def public(self) -> set[str]:
        """Return the contract names of the tensors that begin with weights from elsewhere, see `initial_networks`."""
        return {
            f"{component}/{name}"
            for component, module in self.named_modules()
            if isinstance(module, EfficientEncoder)
            for name in module.public()
        }

    def component(self, name: str) -> nn.Module:
        """Return the module of a component, e.g. `target_branch.encoder`."""
        return self.get_submodule(name)

    def branch(self, name: str) -> "Branch":
        """Return the segmentation network that a branch's name stands for."""
        branch: Branch = self.get_submodule(name)  # type: ignore[assignment]
        return branch

    def shapes(self, components: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of `components` by its contract name."""
        return {
            f"{name}/{key}": tuple(value.shape)
            for name in components
            for key, value in self.component(name).state_dict().items()
        }

    def export(self, components: Iterable[str]) -> Tensors:
        """Return float32 copies of all tensors of `components`."""
        return {
            f"{name}/{key}": value.detach().cpu().numpy().copy()
            for name in components
            for key, value in self.component(name).state_dict().items()
        }

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Load tensors by contract name; components that are not in `tensors` stay as they are."""
        for name in {component_of(key) for key in tensors}:
            state = {k.partition("/")[2]: torch.from_numpy(v) for k, v in tensors.items() if component_of(k) == name}
            self.component(name).load_state_dict(state)


def initial_networks(study: Study) -> Networks:
    """Return networks initialised from the study's seed, each component from a seed of its own.

    Raises:
        StudyError: if a network begins with public weights that are not here.
    """
    networks = Networks(study)
    with torch.random.fork_rng(devices=[]):
        for name, _ in networks.named_children():
            torch.manual_seed(derive_seed(b"initial", study.seed, name))
            for module in networks.component(name).modules():
                reset = getattr(module, "reset_parameters", None)
                if reset is not None:
                    reset()
    for module in networks.modules():
        if isinstance(module, EfficientEncoder):
            begin(module)
    networks.infusion_head.reset()
    return networks
