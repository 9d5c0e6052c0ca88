"""From two branches' logits to one prediction: the confidence-aware infusion, and every predictor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from scipy import ndimage
from torch import Tensor

from common.components import BRANCHES
from common.geometry import standardise
from common.networks import InfusionHead, Networks
from common.study import Study


@dataclass(frozen=True)
class Fusion:
    """Per-pixel results, each [B, 1, H, W] in [0, 1]; `weight` is the source branch's share."""

    source_branch: Tensor
    target_branch: Tensor
    weight: Tensor
    infusion: Tensor

    @property
    def average(self) -> Tensor:
        """The plain average of both branches, after each one's temperature."""
        return (self.source_branch + self.target_branch) / 2


def entropy(p: Tensor) -> Tensor:
    """Return the binary entropy of probabilities in nats, 0 to log 2."""
    p = p.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def fuse(head: InfusionHead, source_logits: Tensor, target_logits: Tensor) -> Fusion:
    """Fuse two branches' logits [B, 1, H, W]: `p = w * p_source + (1 - w) * p_target`.

    Probabilities are taken after each branch's temperature, which moves confidence but no decision.
    """
    p_source, p_target = (
        tempered(head, branch, logits) for branch, logits in zip(BRANCHES, (source_logits, target_logits), strict=True)
    )
    evidence = [
        p_source,
        p_target,
        entropy(p_source),
        entropy(p_target),
        (p_source - p_target).abs(),
    ]
    weight = head(torch.cat(evidence, 1))
    return Fusion(p_source, p_target, weight, weight * p_source + (1 - weight) * p_target)


def tempered(head: InfusionHead, branch: str, logits: Tensor) -> Tensor:
    """Return a branch's probabilities after its temperature, as `fuse` takes them."""
    return torch.sigmoid(logits / head.log_temperature.exp()[BRANCHES.index(branch)])


def alone(networks: Networks, name: str, x: Tensor) -> Tensor:
    """Return what one network says by itself, [B, 1, H, W] in [0, 1]: a branch, the student or the baseline."""
    logits = networks.branch(name)(x)
    return tempered(networks.infusion_head, name, logits) if name in BRANCHES else torch.sigmoid(logits)


#: What the branches and the head give; the networks beside them are `baseline` and `student`.
MAPS = ("source_branch", "target_branch", "average", "infusion", "weight")


def predict_maps(
    networks: Networks, study: Study, image: Tensor, valid: Tensor, names: Sequence[str]
) -> dict[str, Tensor]:
    """Return predictors' foreground probability, and the infusion's `weight`, for one image.

    Args:
        image: [h, w] in [0, 1] on the study's grid, h and w at least `study.image.size`.
        valid: [h, w] bool, False on padding.
        names: of `MAPS`, `baseline` and `student`, where the study has them; only what they need is computed.

    Returns:
        [h, w] maps in [0, 1] by name. Images larger than a tile are predicted tile by tile and
        blended; with `study.flips_at_inference` each tile is averaged with its mirror, but for the student, whose
        only worth is that it is fast; small parts are dropped as `study.smallest_part` says, and then what lies on
        padding too.
    """
    x = standardise(image[None, None], valid[None, None])
    side = study.image.size
    one_tile = x.shape[-2:] == (side, side)

    def tiled(predict: Callable[[Tensor], Tensor]) -> Tensor:
        if one_tile:
            return predict(x)
        return sliding_window_inference(x, side, 4, predict, overlap=0.5, mode="gaussian")

    with torch.no_grad():
        maps = tiled(lambda tile: _stacked(networks, tile, names, flips=study.flips_at_inference))[0]
    share = study.smallest_part
    if not share:
        return {name: maps[i] for i, name in enumerate(names)}
    # No loss reaches padding, so a network says anything there: no part of it may be the largest one.
    return {
        name: maps[i] if name == "weight" else without_small_parts(maps[i] * valid, share)
        for i, name in enumerate(names)
    }


def without_small_parts(p: Tensor, share: float) -> Tensor:
    """Return a map [h, w] in [0, 1] that is 0 on every connected part above 0.5 but those of a size near the largest.

    Args:
        share: of the largest part's pixels, below which a part goes; parts touch at sides, not at corners.
    """
    parts, count = ndimage.label(p.numpy() > 0.5)
    if count < 2:
        return p
    sizes = np.bincount(parts.ravel())
    sizes[0] = sizes[1:].max()  # the background stays as it is
    return p * torch.from_numpy((sizes >= share * sizes[0])[parts])


def _stacked(networks: Networks, x: Tensor, names: Sequence[str], *, flips: bool) -> Tensor:
    """Return [B, len(names), H, W] for standardised tiles [B, 1, H, W]."""
    views = torch.cat([x, x.flip(-1)]) if flips else x

    def mean(maps: Tensor) -> Tensor:
        if not flips:
            return maps
        plain, mirrored = maps.chunk(2)
        return (plain + mirrored.flip(-1)) / 2

    by_name: dict[str, Tensor]
    own = set(names) & set(MAPS)
    if own <= set(BRANCHES):
        by_name = {name: mean(alone(networks, name, views)) for name in own}
    else:
        fusion = fuse(networks.infusion_head, networks.source_branch(views), networks.target_branch(views))
        by_name = {name: mean(getattr(fusion, name)) for name in MAPS}
    if "baseline" in names:
        by_name["baseline"] = mean(alone(networks, "baseline", views))
    if "student" in names:
        by_name["student"] = alone(networks, "student", x)
    return torch.cat([by_name[name] for name in names], 1)
