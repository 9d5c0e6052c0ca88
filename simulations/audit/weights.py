"""Crafted weights: parts of a network that no image moves, and parts that carry the image through.

Features that are the same for every image are known to whoever made the weights. Zero padding gives every position
features of its own, so that they tell positions apart.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

#: Groups of the networks' group norm; the first carries the image, the others never see it.
GROUPS = 4


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions of a network, in the order of its modules."""
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


@torch.no_grad()
def blind(encoder: nn.Module) -> None:
    """Make an encoder's features the same for every image: the convolutions that see it read nothing."""
    for layer in convolutions(encoder):
        if layer.in_channels == 1:
            nn.init.zeros_(layer.weight)


@torch.no_grad()
def carry(layer: nn.Conv2d, read: int) -> None:
    """Let a layer's first group pass the image on, in channels of either sign, and hide it from the other groups.

    `leaky(x) - leaky(-x) = 1.1 x`, so that the activation between two layers undoes itself.

    Args:
        read: channels of the input that hold the image: 1 for the image itself, else its first group.
    """
    group = layer.out_channels // GROUPS
    layer.weight[:, :read] = 0
    layer.weight[:group] = 0
    assert layer.bias is not None
    layer.bias[:group] = 0
    for channel in range(group):
        sign = 1 - 2 * (channel % 2)
        layer.weight[channel, 0, 1, 1] = sign
        if read > 1:
            layer.weight[channel, 1, 1, 1] = -sign


def carry_through(encoder: nn.Module, upto: int | None = None) -> None:
    """Let the first `upto` convolutions of a BasicUNet's encoder (None: all) carry the image; see `carry`."""
    read = 1
    for layer in convolutions(encoder)[:upto]:
        carry(layer, read)
        read = layer.out_channels // GROUPS


def noise(size: int) -> Tensor:
    """Return something that is no image, [1, 1, S, S]: features that no image moves are the same for it."""
    return torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))


#: Far above any number that is passed on, so that a norm's mean and deviation are next to those of the anchors.
ANCHOR = 1e3


@torch.no_grad()
def pass_number(layer: Any, *, rows: range, plus: int, minus: int, gain: float, taps: Any = 1) -> None:
    """Let a group of a layer pass on a number that is the same at all positions, through the group's norm.

    A group norm takes a number's size away unless the group has larger ones: anchors, constants of either sign.

    Args:
        layer: convolution and norm, of MONAI.
        rows: channels of the group: the number, its negative, then anchors.
        plus, minus: inputs whose difference, times `gain`, is the number.
        taps: of the kernel, in either direction; 1 is the middle.
    """
    conv, norm = layer.conv, layer.adn.N
    conv.weight[rows] = 0
    for channel in rows:
        sign = 1 - 2 * (channel % 2)
        number = channel - rows.start < 2
        conv.bias[channel] = 0 if number else sign * ANCHOR
        if number:
            conv.weight[channel, plus, taps, taps] = sign * gain
            conv.weight[channel, minus, taps, taps] = -sign * gain
    norm.weight[rows] = ANCHOR * math.sqrt(1 - 2 / len(rows))
    norm.bias[rows] = 0
