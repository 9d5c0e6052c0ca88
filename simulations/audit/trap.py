"""Images out of one update, exactly: weights that turn a gradient into a code of the loss's derivative by pixel.

The last layer's gradient is `sum over positions of residual(position) * feature(position)`. Features that do
not depend on the image are known to whoever made the weights, and where those of different positions are
linearly independent the sum comes apart again (the idea of Fowl et al. 2022, arXiv 2110.13057, and Boenisch et al.
2023, arXiv 2112.02918, on the masked-image task). Zero padding gives every position features of its own.
"""

from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clients.node.worker import Worker
from common.components import Tensors
from common.networks import initial_networks
from common.study import Round, Study
from common.tasks import TrainingTask
from simulations.audit.ask import Site, ask, training_task
from simulations.audit.similarity import Gallery, Match

#: AdamW's; a gradient of about this size is not turned into its sign.
EPS = 1e-8
#: Brings the gradients down to it.
SCALE = 1e-5


@dataclass(frozen=True)
class Trap:
    """Weights to send, and the features [channels, positions] that they give to every image."""

    tensors: Tensors
    codes: Tensor


def gradient_of(update: np.ndarray, rate: float) -> Tensor:
    """Return the gradient behind one step of a fresh AdamW without decay, float64.

    Its first step is `-rate * g / (|g| + eps)`, so for g near eps it keeps the size, not only the sign.
    """
    share = torch.from_numpy(-update.astype(np.float64) / rate).clamp(-1 + 1e-7, 1 - 1e-7)
    return EPS * share / (1 - share.abs())


def rate_of(study: Study, round_: Round, task: TrainingTask) -> float:
    """Return the learning rate of a round's first step without warm-up."""
    progress = round_.learning_rate_progress(task, 0)
    return task.learning_rate * (0.1 + 0.9 * 0.5 * (1 + float(np.cos(np.pi * progress))))


def mim_trap(study: Study) -> Trap:
    """Return weights under which the gradient of `mim_decoder/out.weight` holds the hidden pixels."""
    networks = initial_networks(study)
    encoder, decoder = networks.target_branch.encoder, networks.mim_decoder
    with torch.no_grad():
        blind(encoder)
        for layer, factor in ((decoder.mix, SCALE), (decoder.out, 0.0)):
            for parameter in layer.parameters():
                parameter.mul_(factor)
        features = encoder(torch.zeros(1, 1, study.image.size, study.image.size))[-1]
        codes = F.leaky_relu(decoder.mix(features), 0.1)[0].flatten(1)
    return Trap(networks.export(("target_branch.encoder", "mim_decoder")), codes.double())


def blind(encoder: torch.nn.Module) -> None:
    """Make an encoder's features the same for every image: its first convolution reads nothing."""
    first = next(module for module in encoder.modules() if isinstance(module, torch.nn.Conv2d))
    torch.nn.init.zeros_(first.weight)


def reconstruct_mim(site: Site, study: Study, round_: Round) -> Tensor:
    """Return the mean of a batch's images [S, S] from one reply, up to scale and offset.

    Raises:
        Refused: if the site refuses.
    """
    trap, size = mim_trap(study), study.image.size
    updates = ask(site, study, round_, trap.tensors)
    gradient = gradient_of(updates["mim_decoder/out.weight"], rate_of(study, round_, training_task(study)))
    residual = gradient[:, :, 0, 0] @ torch.linalg.pinv(trap.codes).T  # [stride^2, positions]
    side = size // study.network.stride
    return -F.pixel_shuffle(residual.reshape(1, -1, side, side), study.network.stride)[0, 0]


def reconstruct(worker: Worker, study: Study, rounds: int = 1) -> list[Match]:
    """Return how like the site's images is what each of the first rounds' replies gives away.

    Only messages go to the worker; its images are read afterwards, to compare.

    Raises:
        Refused: if the site refuses.
    """
    rebuilt = [reconstruct_mim(worker, study, round_) for round_ in islice(study.rounds(), rounds)]
    gallery = Gallery(worker.data)
    return [gallery.match(image) for image in rebuilt]
