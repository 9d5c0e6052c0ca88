"""Images out of one update, exactly: weights that turn a gradient into a code of the loss's derivative by pixel.

A layer's gradient is a sum over positions of `derivative(position) * feature(position)`. Where the features are the
same for every image, and those of different positions are linearly independent, the sum comes apart again. The idea is
Fowl et al. 2022 (arXiv 2110.13057) and Boenisch et al. 2023 (arXiv 2112.02918); here the derivative itself is an
image: what masked-image modelling missed, and what a segmentation that repeats the image got wrong.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from clients.data.dataset import Dataset
from common.components import HALVES, Tensors
from common.networks import initial_networks
from common.stage import Round
from common.study import Study
from simulations.audit.similarity import Gallery, Match
from simulations.audit.step import filled, gradient_of, small
from simulations.audit.weights import GROUPS, blind, carry, carry_through, noise


class Trap(Protocol):
    """Weights to send, and how to read what comes back."""

    tensors: Tensors

    def read(self, updates: Tensors, round_: Round) -> list[Tensor]:
        """Return the images [S, S] in a site's updates, up to scale and offset."""


class MimTrap:
    """The hidden pixels in the gradient of `mim_decoder.out`: it predicts 0, so what it missed is the image.

    Of a batch it is the mean.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        networks = initial_networks(study)
        encoder, decoder = networks.target_branch.encoder, networks.mim_decoder
        blind(encoder)
        with torch.no_grad():
            for layer, factor in ((decoder.mix, small(study)), (decoder.out, 0.0)):
                for parameter in layer.parameters():
                    parameter.mul_(factor)
            features = encoder(noise(study.image.size))[-1]
            codes = F.leaky_relu(decoder.mix(features), 0.1)[0].flatten(1).double()
        self.decode = torch.linalg.pinv(codes)  # [positions, channels]
        self.tensors = networks.export(("target_branch.encoder", "mim_decoder"))

    def read(self, updates: Tensors, round_: Round) -> list[Tensor]:
        gradient = gradient_of(updates["mim_decoder/out.weight"], self.study, round_)[:, :, 0, 0]
        missed = gradient @ self.decode.T  # [stride^2, positions]
        side = self.study.image.size // self.study.network.stride
        return list(filled(-F.pixel_shuffle(missed.reshape(1, -1, side, side), self.study.network.stride)[:, 0]))


class SuperviseTrap:
    """Image and mask in the gradient of a branch's last 3 x 3 convolution.

    The logit repeats the image, so the loss's derivative is about `sigmoid(image) - mask`: positive outside the mask,
    negative inside. Beside the image's, the decoder has channels that no image moves; by their gradient, linear in
    that derivative, it is solved for.
    """

    LAYER = "source_branch.decoder/upcat_1.convs.conv_1.conv.weight"

    def __init__(self, study: Study) -> None:
        self.study = study
        networks = initial_networks(study)
        branch, size = networks.source_branch, study.image.size
        encoder: Any = branch.encoder
        decoder: Any = branch.decoder
        last, final = decoder.upcat_1.convs, decoder.final_conv
        carry_through(encoder, upto=2)
        skip, self.group = encoder.down_1.convs.conv_0.conv.in_channels // GROUPS, final.in_channels // GROUPS
        with torch.no_grad():
            encoder.down_1.convs.conv_0.conv.weight[:, :skip] = 0
            carry(last.conv_0.conv, skip)
            carry(last.conv_1.conv, self.group)
            final.weight[:, : self.group] = 0
            final.weight[0, 0], final.weight[0, 1] = 0.5, -0.5
            final.weight[:, self.group :] *= small(study) / 10
            final.bias.zero_()
        self.tensors = networks.export(HALVES["source_branch"])
        networks.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        seen: list[Tensor] = []
        hook = last.conv_1.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        branch(noise(size))
        hook.remove()
        logits = final(last.conv_1(seen[0])).flatten()
        rows = []
        for some in torch.eye(size * size).split(32):
            (part,) = torch.autograd.grad(
                logits, last.conv_1.conv.weight, some, retain_graph=True, is_grads_batched=True
            )
            rows.append(part[:, self.group :, self.group :].flatten(1))
        self.map = torch.cat(rows).double()  # [pixels, weights]
        gram = self.map @ self.map.T
        self.factor = torch.linalg.cholesky(gram + 1e-10 * gram.diagonal().mean() * torch.eye(len(gram)))

    def read(self, updates: Tensors, round_: Round) -> list[Tensor]:
        gradient = gradient_of(updates[self.LAYER], self.study, round_)[self.group :, self.group :].flatten()
        derivative = torch.cholesky_solve((self.map @ gradient)[:, None], self.factor)[:, 0]
        return [image_of(derivative).reshape(self.study.image.size, -1)]


def image_of(derivative: Tensor) -> Tensor:
    """Return the image [P] behind the loss's derivative [P] by a logit that repeats it, of one patient."""
    seen = (derivative.abs() > 0.1 * derivative.abs().max()).sum()
    inside = (derivative < 0).double()
    # cross-entropy's step at the mask's edge, and soft Dice's at a probability of about one half
    step = 1 + seen / (seen + 2 * inside.sum())
    return derivative * seen + step * inside


def matches(rebuilt: Sequence[Tensor], *of: Dataset) -> list[Match]:
    """Return the best match of each rebuilt image or tile, all of one size, among sites' training images."""
    if not rebuilt:
        return []
    gallery = Gallery(*of).cut(rebuilt[0].shape[-1])
    return [gallery.match(image) for image in rebuilt]
