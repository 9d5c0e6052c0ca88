"""Single images out of a batch: features that open only for an image with a certain value.

"Robbing the Fed" (Fowl et al. 2022, arXiv 2110.13057) on the masked-image task. A number of each image, made of the few
pixels that are not hidden, is compared with many thresholds; the difference of what two neighbouring thresholds let
through is the images between them, and mostly there is only one.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from common.components import Tensors
from common.networks import initial_networks
from common.study import Round, Study
from simulations.audit.step import filled, gradient_of
from simulations.audit.weights import GROUPS, carry_through, noise


class GatedTrap:
    """`MimTrap` for batches: one gate a threshold and position.

    The deepest level has to be 2 x 2, so that a 3 x 3 convolution sees all of an image from anywhere.

    Args:
        reach: thresholds lie evenly in +- this.
    """

    def __init__(self, study: Study, reach: float) -> None:
        self.study, side = study, study.image.size // study.network.stride
        assert side == 2
        networks = initial_networks(study)
        encoder, decoder = networks.target_branch.encoder, networks.mim_decoder
        carry_through(encoder)
        self.positions = side * side
        self.gates = decoder.mix.out_channels // self.positions
        self.thresholds = torch.linspace(-reach, reach, self.gates)
        with torch.no_grad():
            features = encoder(noise(study.image.size))[-1][0].flatten(1)
            group = len(features) // GROUPS
            # at its own position a gate's argument is `value - threshold`, elsewhere below 0 for every image
            wanted = 4 * reach * (torch.eye(self.positions) - 1)
            taps = wanted @ torch.linalg.pinv(features[group:])
            decoder.mix.weight.zero_()
            decoder.mix.weight[:, 0], decoder.mix.weight[:, 1] = 1.0, -1.0
            decoder.mix.weight[:, group:, 1, 1] = taps.repeat(self.gates, 1)
            decoder.mix.bias[:] = -self.thresholds.repeat_interleave(self.positions)
            for layer, factor in ((decoder.mix, 1e-5), (decoder.out, 0.0)):
                for parameter in layer.parameters():
                    parameter.mul_(factor)
        self.encoder = encoder
        self.tensors = networks.export(("target_branch.encoder", "mim_decoder"))

    @torch.no_grad()
    def values(self, masked: Tensor) -> Tensor:
        """Return the number of each masked image [B, 1, S, S] that the gates compare, [B]."""
        features = self.encoder(masked)[-1]
        return (features[:, 0] - features[:, 1]).sum((1, 2))

    def read(self, updates: Tensors, round_: Round) -> list[Tensor]:
        """Return an image for each gate that something went through."""
        gradient = gradient_of(updates["mim_decoder/out.weight"], self.study, round_)[:, :, 0, 0]
        by_gate = gradient.reshape(-1, self.gates, self.positions).transpose(0, 1)  # [gates, stride^2, positions]
        # the second difference of `leaky(value - threshold)` is a hat: 0 but for values next to the threshold
        between = by_gate[:-2] - 2 * by_gate[1:-1] + by_gate[2:]
        stride, size = self.study.network.stride, self.study.image.size
        images = -F.pixel_shuffle(between.reshape(len(between), stride**2, size // stride, -1), stride)[:, 0]
        strength = images.flatten(1).norm(dim=1)
        return list(filled(images[strength > 0.02 * strength.max()]))
