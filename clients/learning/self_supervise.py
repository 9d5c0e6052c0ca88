"""`self_supervise`: masked image modelling and dense within-image contrast on unlabelled patients."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from clients.data.dataset import tiles
from clients.data.frames import Frame
from clients.learning.training import LossOf, Metrics, Seen, TaskContext, train
from common.augment import augment, device_shift
from common.geometry import standardise
from common.losses import dense_contrast, reconstruction
from common.networks import CONTRAST_LEVEL
from common.tasks import SelfSupervise


def random_masking(count: int, side: int, block: int, ratio: float, generator: Generator) -> Tensor:
    """Return [count, 1, side, side] in {0, 1}: 1 is hidden, in whole blocks, `ratio` of them in each image."""
    cells = -(-side // block)
    noise = torch.rand(count, cells * cells, generator=generator)
    hidden = torch.zeros(count, cells * cells)
    hidden.scatter_(1, noise.argsort(1)[:, : round(ratio * cells * cells)], 1.0)
    grid = hidden.reshape(count, 1, cells, cells)
    return F.interpolate(grid, scale_factor=block, mode="nearest")[..., :side, :side]


def run(context: TaskContext) -> Metrics:
    """Train the target encoder with its MIM decoder and projector; the contract's metrics."""
    return train(context, objective)


def objective(context: TaskContext, seen: Seen) -> LossOf:
    """Return the loss on unlabelled frames."""
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, SelfSupervise)
    encoder = networks.target_branch.encoder
    side = study.image.size

    def loss_of(frames: Sequence[Frame], generator: Generator) -> Tensor:
        samples = [context.data.sample(frame) for frame in frames]
        batch = tiles(samples, [s.valid[None].float() for s in samples], side, generator)
        image, valid = augment(batch.image, batch.maps, study.augmentation, generator)
        x = standardise(image, valid > 0)
        hidden = random_masking(len(x), side, task.mask_block, task.mask_ratio, generator) * valid
        # a hidden pixel shows the image's mean, which is 0 after standardising
        rebuilt = reconstruction(networks.mim_decoder(encoder(x * (1 - hidden))), x, hidden)
        total = task.reconstruction_weight * rebuilt
        seen["reconstruction_loss"].append(float(rebuilt.detach().mean()))
        if task.contrast_weight > 0:
            # Two photometric views of one geometry: places correspond without warping features.
            views = [standardise(device_shift(image, generator, 0.5), valid > 0) for _ in range(2)]
            first, second = (networks.projector(encoder(view)) for view in views)
            usable = F.max_pool2d(1 - valid, 2**CONTRAST_LEVEL)[:, 0] == 0
            contrast = dense_contrast(first, second, usable, task.contrast_temperature)
            total = total + task.contrast_weight * contrast
            seen["contrast_loss"].append(float(contrast.detach().mean()))
        return total

    return loss_of
