"""The gradient behind an update: one AdamW step, undone."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clients.learning.training import annealed
from common.stage import Round
from common.study import Study
from simulations.audit.ask import training_task

#: AdamW's; a gradient of about this size is not turned into its sign.
EPS = 1e-8


def gradient_of(update: np.ndarray, study: Study, round_: Round) -> Tensor:
    """Return the gradient behind one step of a fresh AdamW without decay or warm-up, float64.

    The first step is `-rate * g / (|g| + eps)`: of a gradient near eps it keeps the size, not only the sign. The
    attacker sees to that size by the scale of his weights.
    """
    task = training_task(study)
    rate = task.learning_rate * annealed(round_.learning_rate_progress(task, 0))
    share = torch.from_numpy(-update.astype(np.float64) / rate).clamp(-1 + 1e-7, 1 - 1e-7)
    return EPS * share / (1 - share.abs())


def small(study: Study) -> float:
    """Return the factor of crafted weights that brings gradients near eps. Under noise they are to be large instead."""
    return 1e-5 if study.privacy is None else 1.0


def filled(images: Tensor) -> Tensor:
    """Return images [N, S, S] whose unknown pixels, exactly those next to 0, hold the mean of known neighbours."""
    images = images[:, None]
    known = (images.abs() > 1e-3 * images.abs().amax((2, 3), keepdim=True)).to(images.dtype)
    box = torch.ones(1, 1, 5, 5, dtype=images.dtype)
    around = F.conv2d(images * known, box, padding=2) / F.conv2d(known, box, padding=2).clamp(min=1)
    return torch.where(known > 0, images, around)[:, 0]
