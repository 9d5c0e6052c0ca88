"""`self_supervise`: masked image modelling and dense within-image contrast on unlabelled patients."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from clients.data.dataset import tiles
from clients.data.frames import Frame
from clients.learning.training import Loss, Objective, TaskContext
from clients.learning.view import view
from common.augment import device_shift
from common.geometry import standardise
from common.losses import dense_contrast, reconstruction
from common.network_settings import CONTRAST_LEVEL
from common.tasks import SelfSupervise


def random_masking(count: int, side: int, block: int, ratio: float, generator: Generator) -> Tensor:
    """Return [count, 1, side, side] in {0, 1}: 1 is hidden, in whole blocks, `ratio` of them in each image."""
    cells = -(-side // block)
    noise = torch.rand(count, cells * cells, generator=generator)
    hidden = torch.zeros(count, cells * cells)
    hidden.scatter_(1, noise.argsort(1)[:, : round(ratio * cells * cells)], 1.0)
    grid = hidden.reshape(count, 1, cells, cells)
    return F.interpolate(grid, scale_factor=block, mode="nearest")[..., :side, :side]


def objective(context: TaskContext) -> Objective:
    """Return `reconstruction_weight * MIM + contrast_weight * contrast` on unlabelled frames."""
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, SelfSupervise)
    encoder = networks.target_branch.encoder

    def loss(frames: Sequence[Frame], generator: Generator) -> Loss:
        samples = [context.data.sample(frame) for frame in frames]
        batch = tiles(samples, [s.image[None][:0] for s in samples], study.image.size, generator)
        seen = view(batch, study.augmentation, generator)
        hidden = random_masking(len(frames), study.image.size, task.mask_block, task.mask_ratio, generator) * seen.valid
        # a hidden pixel shows the image's mean, which is 0 after standardising
        rebuilt = reconstruction(networks.mim_decoder(encoder(seen.x * (1 - hidden))), seen.x, hidden)
        total, terms = task.reconstruction_weight * rebuilt, {"reconstruction_loss": rebuilt}
        if task.contrast_weight > 0:
            # Two photometric views of one geometry: places correspond without warping features.
            views = [standardise(device_shift(seen.image, generator, 0.5), seen.valid > 0) for _ in range(2)]
            first, second = (networks.projector(encoder(x)) for x in views)
            usable = F.max_pool2d(1 - seen.valid, 2**CONTRAST_LEVEL)[:, 0] == 0
            contrast = dense_contrast(first, second, usable, task.contrast_temperature)
            total, terms = total + task.contrast_weight * contrast, terms | {"contrast_loss": contrast}
        return Loss(total, {name: float(term.detach().mean()) for name, term in terms.items()})

    return Objective(loss)
