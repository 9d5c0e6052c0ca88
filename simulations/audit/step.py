"""The gradient behind an update: one AdamW step, undone."""

import math

import numpy as np
import torch
from torch import Tensor

from common.study import Round, Study
from simulations.audit.ask import training_task

#: AdamW's; a gradient of about this size is not turned into its sign.
EPS = 1e-8


def gradient_of(update: np.ndarray, study: Study, round_: Round) -> Tensor:
    """Return the gradient behind one step of a fresh AdamW without decay or warm-up, float64.

    The first step is `-rate * g / (|g| + eps)`: of a gradient near eps it keeps the size, not only the sign. The
    attacker sees to that size by the scale of his weights.
    """
    task = training_task(study)
    cosine = 0.5 * (1 + math.cos(math.pi * round_.learning_rate_progress(task, 0)))
    rate = task.learning_rate * (0.1 + 0.9 * cosine)
    share = torch.from_numpy(-update.astype(np.float64) / rate).clamp(-1 + 1e-7, 1 - 1e-7)
    return EPS * share / (1 - share.abs())
