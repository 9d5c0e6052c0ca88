"""A released model as one graph of images of any size: padding, normalisation, both branches and the infusion head, or
one network alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clients.released import Model
from common.geometry import standardise
from common.infusion import alone, fuse


class Graph(nn.Module):
    """Images [B, 1, H, W] in [0, 1], on the study's grid -> foreground probability [B, 1, H, W] in [0, 1].

    An image of at most `image.size` a side gives what `crossprobe predict` has for it on the grid. A larger one is seen
    whole, where `predict` cuts it into tiles: norms then see more of it at once, and each pixel is computed once.

    Args:
        flips: average with the prediction of the mirrored image, at twice the cost.
    """

    def __init__(self, model: Model, *, flips: bool) -> None:
        super().__init__()
        study = model.study
        network = study.student if model.predictor == "student" else study.network
        assert network is not None
        self.networks, self.predictor, self.flips = model.networks, model.predictor, flips
        self.size, self.stride = study.image.size, network.stride

    def forward(self, image: Tensor) -> Tensor:
        count, _, height, width = image.shape
        padding = (0, self._missing(width), 0, self._missing(height))
        valid = F.pad(torch.ones_like(image), padding) > 0
        x = standardise(F.pad(image, padding), valid)
        p = self._predict(torch.cat([x, x.flip(-1)]) if self.flips else x)
        if self.flips:
            p = (p[:count] + p[count:].flip(-1)) / 2
        return p[..., :height, :width]

    def _missing(self, side: int) -> int:
        """Pixels up to a whole grid, as `common.geometry.to_grid` adds them."""
        # not `max`, which a trace would evaluate once and for all; a traced side is a tensor
        larger = side + torch.as_tensor(self.size - side).clamp(min=0)
        return larger + -larger % self.stride - side  # type: ignore[return-value]

    def _predict(self, x: Tensor) -> Tensor:
        if self.predictor != "infusion":
            return alone(self.networks, self.predictor, x)
        source, target = self.networks.source_branch(x), self.networks.target_branch(x)
        return fuse(self.networks.infusion_head, source, target).infusion
