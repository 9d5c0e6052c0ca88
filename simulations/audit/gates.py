"""Single images out of a batch: features that open only for an image with a certain value.

"Robbing the Fed" (Fowl et al. 2022, arXiv 2110.13057) on the masked-image task. A number of each image, made of the few
pixels that are not hidden, is compared with many thresholds; the difference of what two neighbouring thresholds let
through is the images between them, and mostly there is only one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.components import Tensors
from common.networks import initial_networks
from common.stage import Round
from common.study import Study
from simulations.audit.step import filled, gradient_of, small
from simulations.audit.weights import GROUPS, carry_through, noise


class TileTrap:
    """Single tiles out of a batch, with weights that look as if training had made them.

    All filters of `mim_decoder.mix` are the same random one and differ in their bias, the threshold. A value belongs to
    one position of one image, so what a gate lets through is a tile of stride x stride pixels. All that is out of
    the ordinary is the last normalisation's scale, which brings the gradient near AdamW's eps.
    """

    #: Thresholds lie evenly in +- this; in it were the values of all images, breast and phantom wrist.
    REACH = 0.6

    def __init__(self, study: Study) -> None:
        self.study = study
        networks = initial_networks(study)
        decoder, factor = networks.mim_decoder, small(study)
        encoder: Any = networks.target_branch.encoder
        with torch.no_grad():
            decoder.mix.weight[:] = decoder.mix.weight[:1].clone()
            assert decoder.mix.bias is not None
            decoder.mix.bias[:] = -factor * torch.linspace(-self.REACH, self.REACH, decoder.mix.out_channels)
            for parameter in encoder.down_4.convs.conv_1.adn.N.parameters():
                parameter *= factor
            assert decoder.out.bias is not None
            decoder.out.bias.zero_()  # so that what it predicts is next to 0
        self.tensors = networks.export(("target_branch.encoder", "mim_decoder"))

    def read(self, updates: Tensors, round_: Round) -> list[Tensor]:
        """Return a tile for each gate that something went through."""
        gradient = gradient_of(updates["mim_decoder/out.weight"], self.study, round_)[:, :, 0, 0]
        return _opened(gradient.T.reshape(-1, self.study.network.stride, self.study.network.stride), least=0.1)


def _opened(by_gate: Tensor, least: float) -> list[Tensor]:
    """Return what lies between neighbouring thresholds, of gates [G, h, w] that let through `least` of the most.

    The second difference of `leaky(value - threshold)` is a hat: 0 but for values next to the threshold.
    """
    images = -(by_gate[:-2] - 2 * by_gate[1:-1] + by_gate[2:])
    strength = images.flatten(1).norm(dim=1)
    return list(filled(images[strength > least * strength.max()]))


class GatedTrap:
    """`MimTrap` for batches: one gate a threshold and position.

    The deepest level has to be 2 x 2, so that a 3 x 3 convolution sees all of an image from anywhere.

    Args:
        scale: of the gradient; far below AdamW's eps its step is linear, and what several sites send adds up.
    """

    #: Thresholds lie evenly in +- this; in it were the numbers of all images, breast and phantom wrist.
    REACH = 4.0

    def __init__(self, study: Study, scale: float | None = None) -> None:
        self.study, side = study, study.image.size // study.network.stride
        assert side == 2
        networks = initial_networks(study)
        encoder, decoder = networks.target_branch.encoder, networks.mim_decoder
        carry_through(encoder)
        self.positions = side * side
        self.gates = decoder.mix.out_channels // self.positions
        thresholds = torch.linspace(-self.REACH, self.REACH, self.gates)
        with torch.no_grad():
            features = encoder(noise(study.image.size))[-1][0].flatten(1)
            group = len(features) // GROUPS
            # at its own position a gate's argument is `value - threshold`, elsewhere below 0 for every image
            wanted = 4 * self.REACH * (torch.eye(self.positions) - 1)
            taps = wanted @ torch.linalg.pinv(features[group:])
            decoder.mix.weight.zero_()
            decoder.mix.weight[:, 0], decoder.mix.weight[:, 1] = 1.0, -1.0
            decoder.mix.weight[:, group:, 1, 1] = taps.repeat(self.gates, 1)
            assert decoder.mix.bias is not None
            decoder.mix.bias[:] = -thresholds.repeat_interleave(self.positions)
            for layer, factor in ((decoder.mix, scale or small(study)), (decoder.out, 0.0)):
                for parameter in layer.parameters():
                    parameter.mul_(factor)
        self.tensors = networks.export(("target_branch.encoder", "mim_decoder"))

    def read(self, updates: Tensors, round_: Round) -> list[Tensor]:
        """Return an image for each gate that something went through."""
        gradient = gradient_of(updates["mim_decoder/out.weight"], self.study, round_)[:, :, 0, 0]
        by_gate = gradient.reshape(-1, self.gates, self.positions).transpose(0, 1)  # [gates, stride^2, positions]
        stride, size = self.study.network.stride, self.study.image.size
        cells = by_gate.reshape(self.gates, stride**2, size // stride, -1)
        return _opened(F.pixel_shuffle(cells, stride)[:, 0], least=0.02)
