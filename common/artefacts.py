"""A bank of ultrasound's artefacts: what a network must not take for anatomy, drawn at random in training.

Images are [B, 1, H, W] in [0, 1] on a log-compressed grey scale, depth down the image; exactly black is outside the
field of view and stays black. On that scale a factor of amplitude is a difference of grey, and the sum of a strong
and a weak echo is close to the larger of the two. Each function draws per image from the generator that is handed in,
takes a `strength` in [0, 1], and is the identity at 0. Sources: Feldman, Katyal, Blackwood, "US Artifacts",
RadioGraphics 29(4), 2009, doi:10.1148/rg.294085199 (F09); Szabo, "Diagnostic Ultrasound Imaging: Inside Out", 2nd ed.
2014 (S14); Burckhardt, "Speckle in ultrasound B-mode scans", IEEE Trans. Sonics Ultrason. 25(1), 1978 (B78).
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from common.artefact_settings import Artefact

#: How often an image shows any one artefact of the bank: about half of them at once.
SHOWN = 0.5


def uniform(generator: Generator, count: int, low: float, high: float) -> Tensor:
    """Return [count, 1, 1, 1] uniform in [low, high)."""
    return torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low


def _axes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return depth [1, 1, H, 1] in (0, 1) from the skin down, and place across [1, 1, 1, W] in (0, 1)."""
    height, width = images.shape[-2:]
    depth = (torch.arange(height) + 0.5) / height
    across = (torch.arange(width) + 0.5) / width
    return depth.reshape(1, 1, height, 1), across.reshape(1, 1, 1, width)


def _smooth(images: Tensor, rows: int, columns: int) -> Tensor:
    """Return the mean over odd windows of rows x columns pixels; the border is repeated."""
    padded = F.pad(images, (columns // 2, columns // 2, rows // 2, rows // 2), mode="replicate")
    return F.avg_pool2d(padded, (rows, columns), stride=1)


def _grain(images: Tensor, generator: Generator, rows: int, columns: int) -> Tensor:
    """Return standard normal noise of the images' shape whose grains are about rows x columns pixels."""
    count, _, height, width = images.shape
    coarse = torch.randn(count, 1, -(-height // rows) + 1, -(-width // columns) + 1, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False) * 1.5


def reverberation(images: Tensor, generator: Generator, strength: float) -> Tensor:
    """Repeat the echo at depth z at 2z: sound went twice between the probe's face and a reflector (F09).

    The second pass costs 0.8 down to 0.15 of the grey scale at strength 1; the copy is a beam broader.
    """
    count, _, height, width = images.shape
    loss = 1 - strength * uniform(generator, count, 0.2, 0.85)
    copy = F.interpolate(images[..., : -(-height // 2), :], size=(height, width), mode="bilinear", align_corners=False)
    return torch.maximum(images, _smooth(copy, 1, 3) - loss)


def near_field_clutter(images: Tensor, generator: Generator, strength: float) -> Tensor:
    """Lay a bright, grained haze under the skin, gone after 3 to 25 % of the depth (S14, chapter 10; F09).

    Up to 0.6 of the grey scale at the skin; one grain is several beams wide.
    """
    depth, _ = _axes(images)
    count = len(images)
    level = uniform(generator, count, 0, 0.6) * strength * torch.exp(-depth / uniform(generator, count, 0.03, 0.25))
    return torch.maximum(images, level * (1 + 0.3 * _grain(images, generator, 2, 6))) + 0.3 * level


def time_gain(images: Tensor, generator: Generator, strength: float) -> Tensor:
    """Set the sliders of the time-gain compensation anew: a smooth gain over depth (S14, chapter 4).

    Eight sliders as on a console, each within +- 0.25 of the grey scale (15 dB of 60) at strength 1.
    """
    count, _, height, _ = images.shape
    sliders = (torch.rand(count, 1, 8, 1, generator=generator) * 2 - 1) * 0.25 * strength
    return images + F.interpolate(sliders, size=(height, 1), mode="bilinear", align_corners=True)


def compression(images: Tensor, generator: Generator, strength: float) -> Tensor:
    """Change dynamic range, gain and grey map (S14, chapter 4): a slope, an offset and an exponent.

    At strength 1 the range is 0.6 to 1.6 times the console's, the gain within +- 0.12, the exponent within 0.55 to 1.8.
    """
    count = len(images)
    grey = 1 + (images - 1) * torch.exp(uniform(generator, count, -0.5, 0.5) * strength)
    grey = grey + uniform(generator, count, -0.12, 0.12) * strength
    return grey.clamp(0, 1) ** torch.exp(uniform(generator, count, -0.6, 0.6) * strength)


def speckle(images: Tensor, generator: Generator, strength: float) -> Tensor:
    """Add speckle of another grain: multiplicative in amplitude, so additive in grey (B78).

    Log-compressed Rayleigh speckle deviates by 5.6 dB, 0.09 of a 60 dB scale; up to that at strength 1.
    """
    rows, columns = (1 + int(torch.randint(0, 2, (1,), generator=generator)) for _ in range(2))
    grain = _grain(images, generator, rows, 1 + columns).clamp(-2, 2)
    return images + uniform(generator, len(images), 0, 0.09) * strength * grain


def shadow(images: Tensor, generator: Generator, strength: float) -> Tensor:
    """Darken a strip below a reflector, or over the whole depth where the probe lost contact (F09).

    4 to 25 % of the width, soft at its sides, from the skin or from within the upper 70 %; up to 0.6 of the grey scale.
    """
    count = len(images)
    depth, across = _axes(images)
    centre, half = uniform(generator, count, 0, 1), uniform(generator, count, 0.02, 0.125)
    tilt = uniform(generator, count, -0.15, 0.15)  # beams of a curved or steered probe are not upright
    strip = torch.sigmoid((half - (across - centre - tilt * depth).abs()) / (0.25 * half))
    begin = uniform(generator, count, -0.3, 0.7)
    below = torch.sigmoid((depth - begin) / 0.03)
    return images - uniform(generator, count, 0.1, 0.6) * strength * strip * below


def depth_blur(images: Tensor, generator: Generator, strength: float) -> Tensor:
    """Blur across the beams away from a random focus: the beam is narrow only there (S14, chapter 6).

    At strength 1 and farthest from the focus what is seen is the mean over 5 beams and 3 rows.
    """
    depth, _ = _axes(images)
    distance = (depth - uniform(generator, len(images), 0, 1)).abs()
    share = (2 * distance * strength * uniform(generator, len(images), 0, 1)).clamp(max=1)
    return images + share * (_smooth(images, 3, 5) - images)


def calipers(images: Tensor, generator: Generator, strength: float) -> Tensor:
    """Set one to four bright crosses anywhere: a sonographer marks what she measures, and a network reads the marks.

    Arms of 1 to 3 pixels, up to white at strength 1. They carry no label, so that a mark is no evidence of a lesion.
    """
    count, _, height, width = images.shape
    rows, columns = torch.arange(height).reshape(1, 1, height, 1), torch.arange(width).reshape(1, 1, 1, width)
    level = (1 - 0.4 * uniform(generator, count, 0, 1)) * strength
    arm = 1 + torch.randint(0, 3, (count, 1, 1, 1), generator=generator)
    marks = torch.zeros_like(images)
    for place in range(4):
        down = (torch.rand(count, 1, 1, 1, generator=generator) * height).int() - rows
        over = (torch.rand(count, 1, 1, 1, generator=generator) * width).int() - columns
        cross = ((down == 0) & (over.abs() <= arm)) | ((over == 0) & (down.abs() <= arm))
        drawn = uniform(generator, count, 0, 1) < 1 / (1 + place)
        marks = torch.maximum(marks, (cross & drawn) * level)
    return torch.maximum(images, marks)


Photometric = Callable[[Tensor, Generator, float], Tensor]
#: In the order of the physics: the echo, what the tissue and the beam do to it, then the console.
PHOTOMETRIC: Mapping[Artefact, Photometric] = {
    "reverberation": reverberation,
    "shadow": shadow,
    "depth_blur": depth_blur,
    "speckle": speckle,
    "near_field_clutter": near_field_clutter,
    "time_gain": time_gain,
    "compression": compression,
    "calipers": calipers,
}


def depth_setting(count: int, generator: Generator, strength: float) -> Tensor:
    """Return [count, 2, 3] matrices, for `warp`, of another depth setting and pixel aspect (S14, chapter 10).

    The picture is scaled about the middle of the skin line: by 0.67 to 1.5 for the depth and by 0.82 to 1.22 across
    on top at strength 1, where a study knows no spacing; what a deeper setting would show besides is black.
    """
    depth = torch.exp((torch.rand(count, generator=generator) * 2 - 1) * math.log(1.5) * strength)
    aspect = torch.exp((torch.rand(count, generator=generator) * 2 - 1) * 0.2 * strength)
    zero = torch.zeros(count)
    # grid_sample's rows run from -1 at the skin: y' + 1 = depth * (y + 1)
    rows = [torch.stack([depth * aspect, zero, zero], 1), torch.stack([zero, depth, depth - 1], 1)]
    return torch.stack(rows, 1)


def field_of_view(images: Tensor, maps: Tensor, generator: Generator, strength: float) -> tuple[Tensor, Tensor]:
    """Cut images and maps to another footprint: fewer beams, a shallower end, a trapezoid (S14, chapter 10).

    Each side loses up to a quarter at the skin, the sides lean by up to a fifth of the width at strength 1, and up to
    a quarter is lost at the bottom. What is cut away is 0: no tissue, no label and, in a map of validity, not valid.
    """
    depth, across = _axes(images)
    count = len(images)

    def side() -> Tensor:
        cut, lean = uniform(generator, count, -0.25, 0.25).clamp(min=0), uniform(generator, count, -0.2, 0.2)
        return (cut + lean * depth) * strength

    seen = (across >= side()) & (1 - across >= side())
    seen = seen & (depth <= 1 - uniform(generator, count, -0.25, 0.25).clamp(min=0) * strength)
    return images * seen, maps * seen


def photometric(images: Tensor, kinds: Mapping[Artefact, float], generator: Generator) -> Tensor:
    """Return images with the grey artefacts of `kinds`, each shown by every second image at random.

    Args:
        kinds: artefact -> strength in [0, 1].
    """
    if not kinds.keys() & PHOTOMETRIC.keys():
        return images
    inside = images > 0
    for kind, apply in PHOTOMETRIC.items():
        if strength := kinds.get(kind):
            shown = uniform(generator, len(images), 0, 1) < SHOWN
            images = torch.where(shown & inside, apply(images, generator, strength).clamp(0, 1), images)
    # A pixel inside is never exactly black: `standardise` would take it for outside.
    return torch.where(inside, images.clamp(min=1 / 255), images)
