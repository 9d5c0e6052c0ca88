"""Single labelled images out of a batch: `SuperviseTrap` with gates, as `GatedTrap` is `MimTrap` with gates.

A number of each image comes from the deepest features. Group norms stand between it and the last layers, and take
away what is the same at all positions; beside large constants it passes (`weights.pass_number`). In the last 3 x 3
convolution it is compared with thresholds; the gradient of a channel that is open for some images alone is a code of
their derivative alone.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.components import HALVES, Tensors
from common.networks import initial_networks
from common.stage import Round
from common.study import Study
from simulations.audit.gates import GatedTrap
from simulations.audit.step import gradient_of, small
from simulations.audit.trap import SuperviseTrap, image_of
from simulations.audit.weights import ANCHOR, GROUPS, carry, carry_through, noise, pass_number

#: What the leaky activations leave of a number and its negative together; see `carry`.
UNDO = 1 / 1.1


class GatedSuperviseTrap:
    """One gate a threshold. The deepest level has to be 2 x 2, so that a 3 x 3 convolution sees all of an image."""

    def __init__(self, study: Study) -> None:
        self.study = study
        assert study.image.size // study.network.stride == 2
        networks = initial_networks(study)
        branch: Any = networks.source_branch
        encoder, decoder = branch.encoder, branch.decoder
        carry_through(encoder)
        deepest = encoder.down_4.convs.conv_1
        rows = range(deepest.conv.out_channels // GROUPS)
        pass_number(deepest, rows=rows, plus=0, minus=1, gain=UNDO, taps=slice(None))
        for level in (decoder.upcat_4, decoder.upcat_3, decoder.upcat_2, decoder.upcat_1):
            _lift(level, last=level is decoder.upcat_1)
        last, final = decoder.upcat_1.convs, decoder.final_conv
        self.group = final.in_channels // GROUPS
        self.rows = _gates(last.conv_1)
        with torch.no_grad():
            final.weight.zero_()
            final.weight[0, 0], final.weight[0, 1] = 0.5, -0.5
            final.weight[0, self.rows] = small(study) / 100
            final.bias.zero_()
        self.tensors = networks.export(HALVES["source_branch"])
        networks.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        seen: list[Tensor] = []
        hook = last.conv_1.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        branch(noise(study.image.size))
        hook.remove()
        codes = F.unfold(seen[0][:, 2 * self.group :], 3, padding=1)[0].T.double()  # [pixels, channels x 9]
        self.codes = codes
        gram = codes @ codes.T
        self.factor = torch.linalg.cholesky(gram + 1e-10 * gram.diagonal().mean() * torch.eye(len(gram)))

    def read(self, updates: Tensors, round_: Round) -> list[Tensor]:
        """Return an image for each two neighbouring thresholds between which something lay."""
        gradient = gradient_of(updates[SuperviseTrap.LAYER], self.study, round_)[self.rows, 2 * self.group :]
        derivatives = torch.cholesky_solve(self.codes @ gradient.flatten(1).T, self.factor).T  # [gates, pixels]
        # what lies between two thresholds opens the lower gate alone; what a norm subtracts is the same in both
        between = derivatives[:-1] - derivatives[1:]
        strength = between.norm(dim=1)
        return [image_of(own).reshape(self.study.image.size, -1) for own in between[strength > 0.1 * strength.max()]]


@torch.no_grad()
def _lift(level: Any, *, last: bool) -> None:
    """Let a level of the decoder pass the number on to the next finer one, and hide it and the image from the rest.

    Args:
        last: of the finest level, whose first group carries the image instead and whose second has the number.
    """
    up, first, second = level.upsample.deconv, level.convs.conv_0, level.convs.conv_1
    up.weight[: up.in_channels // GROUPS] = 0
    up.weight[:, :2] = 0
    up.bias[:2] = 0
    for channel, sign in ((0, 1), (1, -1)):
        up.weight[0, channel], up.weight[1, channel] = sign * UNDO, -sign * UNDO
    skip = first.conv.in_channels - up.out_channels
    first.conv.weight[:, skip : skip + 2] = 0
    group = first.conv.out_channels // GROUPS
    if last:
        carry(first.conv, skip // GROUPS)
        pass_number(first, rows=range(group, 2 * group), plus=skip, minus=skip + 1, gain=0.5)
        carry(second.conv, group)
        return
    first.conv.weight[:, : skip // GROUPS] = 0
    pass_number(first, rows=range(group), plus=skip, minus=skip + 1, gain=0.5)
    second.conv.weight[:, :group] = 0
    pass_number(second, rows=range(group), plus=0, minus=1, gain=UNDO)


@torch.no_grad()
def _gates(layer: Any) -> Tensor:
    """Make gates of all groups of the last layer but the first; return their channels, by threshold.

    A gate's mirror image beside it keeps the group's mean, and four anchors its deviation, the same for all images.
    """
    conv, norm = layer.conv, layer.adn.N
    group = conv.out_channels // GROUPS
    gates = torch.tensor([c for c in range(group, 4 * group, 2) if c % group >= 4])
    thresholds = torch.linspace(-GatedTrap.REACH, GatedTrap.REACH, len(gates))
    conv.weight[group:] = 0
    for sign, channels in ((1.0, gates), (-1.0, gates + 1)):
        conv.weight[channels, group, 1, 1] = sign * UNDO
        conv.weight[channels, group + 1, 1, 1] = -sign * UNDO
        conv.bias[channels] = -sign * thresholds
    anchors = torch.tensor([c for c in range(group, 4 * group) if c % group < 4])
    conv.bias[anchors] = ANCHOR * (1 - 2 * (anchors % 2)).float()
    norm.weight[group:] = ANCHOR * math.sqrt(4 / group)
    norm.bias[group:] = 0
    return gates
