"""Random views of ultrasound images: the common augmentation, and the simulated change of device.

Images are [B, 1, H, W] in [0, 1]; all randomness comes from the generator that is handed in.
"""

import math
from collections.abc import Mapping

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from common.artefact_settings import Artefact
from common.artefacts import SHOWN, depth_setting, field_of_view, photometric, uniform
from common.study_settings import Augmentation


def random_affine(count: int, settings: Augmentation, generator: Generator) -> Tensor:
    """Return [count, 2, 3] matrices of random flip, zoom, rotation and shift, for `warp`."""
    angle = uniform(generator, count, -1, 1)[:, 0, 0, 0] * math.radians(settings.rotation_deg)
    zoom = 1 + uniform(generator, count, -1, 1)[:, 0, 0, 0] * settings.scale
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * 2 * settings.shift
    mirrored = (torch.rand(count, generator=generator) < 0.5) & settings.flip
    sign = torch.where(mirrored, -1.0, 1.0)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    rows = [
        torch.stack([cos * sign, -sin, shift[:, 0]], 1),
        torch.stack([sin * sign, cos, shift[:, 1]], 1),
    ]
    return torch.stack(rows, 1)


def warp(images: Tensor, matrices: Tensor, *, nearest: bool = False) -> Tensor:
    """Apply affine `matrices` [B, 2, 3] to [B, C, H, W]; what comes from outside is 0."""
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest" if nearest else "bilinear", align_corners=False)


def _blur(images: Tensor, sigma_axial: Tensor, sigma_lateral: Tensor) -> Tensor:
    """Blur each image by its own Gaussian; sigmas [B, 1, 1, 1] in pixels, axial is down the image."""
    count, radius = len(images), 4
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)

    def kernel(sigma: Tensor) -> Tensor:
        weights = torch.exp(-0.5 * (offsets / sigma.reshape(count, 1).clamp(min=0.05)).square())
        return weights / weights.sum(1, keepdim=True)

    stacked = images.transpose(0, 1)  # [1, B, H, W]: one group an image
    stacked = F.pad(stacked, (radius,) * 4, mode="replicate")
    stacked = F.conv2d(stacked, kernel(sigma_axial).reshape(count, 1, -1, 1), groups=count)
    stacked = F.conv2d(stacked, kernel(sigma_lateral).reshape(count, 1, 1, -1), groups=count)
    return stacked.transpose(0, 1)


def device_shift(images: Tensor, generator: Generator, strength: float) -> Tensor:
    """Return the images as another device might have shown them.

    The console and the transducer vary, the anatomy stays: point spread (blur, wider across than
    along the beam), grey map (exponent and dynamic range), depth-gain slope, near-field haze,
    multiplicative speckle-like and additive noise. Each is drawn per image and grows with `strength`
    in [0, 1].
    """
    count, _, height, width = images.shape
    if strength == 0:
        return images

    def draw(low: float, high: float) -> Tensor:
        return uniform(generator, count, low, high)

    depth = torch.linspace(0, 1, height).reshape(1, 1, height, 1)
    sharp = images
    x = _blur(sharp, draw(0, 1.0) * strength, draw(0, 2.2) * strength)
    # half of the time the contrary: a sharper device than the one at hand
    x = torch.where(draw(0, 1) < 0.3, sharp + draw(0, 1.0) * strength * (sharp - x), x)
    grain = torch.randn(count, 1, height // 2, width // 2, generator=generator)
    grain = F.interpolate(grain, size=(height, width), mode="bilinear", align_corners=False)
    x = x * (1 + draw(0, 0.35) * strength * grain)
    x = x.clamp(min=0) ** torch.exp(draw(-0.7, 0.7) * strength)
    x = x * torch.exp(draw(-1.2, 0.8) * strength * (depth - 0.3))
    haze = torch.exp(-depth / draw(0.03, 0.3))
    x = x + draw(-0.1, 0.5).clamp(min=0) * strength * haze
    x = (x - draw(-0.1, 0.15) * strength) * torch.exp(draw(-0.35, 0.35) * strength)
    x = x + draw(0, 0.08) * strength * torch.randn(images.shape, generator=generator)
    return x.clamp(0, 1)


def augment(
    images: Tensor,
    maps: Tensor,
    settings: Augmentation,
    generator: Generator,
    *,
    strength: float | None = None,
    artefacts: Mapping[Artefact, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return a random view of images and of the maps that go with them.

    Args:
        images: [B, 1, H, W] in [0, 1].
        maps: [B, C, H, W] (masks, validity, pseudo-labels), moved with the images by nearest neighbour.
        strength: of the simulated device shift; None takes the settings'.
        artefacts: kind -> strength in [0, 1]; none of them draws anything from the generator.
    """
    count, kinds = len(images), artefacts or {}
    matrices = random_affine(count, settings, generator)
    if "depth_setting" in kinds:
        matrices = _after(depth_setting(count, generator, kinds["depth_setting"]), matrices, generator)
    images, maps = warp(images, matrices), warp(maps, matrices, nearest=True)
    if "field_of_view" in kinds:
        shown = uniform(generator, count, 0, 1) < SHOWN
        cut, cut_maps = field_of_view(images, maps, generator, kinds["field_of_view"])
        images, maps = torch.where(shown, cut, images), torch.where(shown, cut_maps, maps)
    images = photometric(images, kinds, generator)
    images = images.clamp(min=0) ** torch.exp(uniform(generator, count, -1, 1) * settings.gamma)
    return device_shift(images, generator, settings.device_shift if strength is None else strength), maps


def _after(second: Tensor, first: Tensor, generator: Generator) -> Tensor:
    """Return matrices [B, 2, 3] that look up `second` and then `first`; half of them, at random, `first` alone."""
    last = torch.tensor([[[0.0, 0.0, 1.0]]]).expand(len(first), -1, -1)
    both = torch.bmm(first, torch.cat([second, last], 1))
    shown = torch.rand(len(first), 1, 1, generator=generator) < SHOWN
    return torch.where(shown, both, first)
