"""Between an image's own pixels and the study's grid: resampling, padding, tiles, and the way back."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import StudyError
from common.study_settings import ImageGrid


@dataclass(frozen=True)
class Placement:
    """Where an image lies on the grid, so that a prediction can be brought back to its own pixels.

    Attributes:
        original: (height, width) of the image's own pixels.
        content: (height, width) of the resampled image; it lies at the top left of the padded grid.
    """

    original: tuple[int, int]
    content: tuple[int, int]


def placement(height: int, width: int, spacing_mm: float | None, grid: ImageGrid) -> Placement:
    """Return where an image of this size and spacing lies on `grid`.

    Raises:
        StudyError: if the study resamples by spacing and the image has none.
    """
    if grid.geometry == "letterbox":
        zoom = grid.size / max(height, width)
    elif spacing_mm is None or grid.spacing_mm is None:
        raise StudyError(
            "the study resamples images by their spacing, but an image has none. Fill `spacing_mm` in the "
            "site's manifest.csv, or use a study with `geometry: letterbox`."
        )
    else:
        zoom = spacing_mm / grid.spacing_mm
    content = (max(1, round(height * zoom)), max(1, round(width * zoom)))
    return Placement((height, width), content)


def to_grid(image: np.ndarray, place: Placement, grid: ImageGrid, *, stride: int) -> tuple[Tensor, Tensor]:
    """Resample an image to the grid and pad it to whole tiles.

    Args:
        image: [H, W] in [0, 1] (a mask is resampled alike, and thresholded by the caller).
        stride: of the network, see `common.network_settings`.

    Returns:
        resampled [h, w] in [0, 1], zero where padded, and valid [h, w], bool, False where padded.
        h and w are at least `grid.size` and multiples of `stride`.
    """
    x = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None]
    # Anti-aliasing matters: going from 300 to 64 pixels without it turns speckle into moire.
    x = F.interpolate(x, size=place.content, mode="bilinear", align_corners=False, antialias=True)[0, 0]
    height, width = (max(grid.size, -(-side // stride) * stride) for side in place.content)
    valid = torch.zeros(height, width, dtype=torch.bool)
    valid[: place.content[0], : place.content[1]] = True
    padded = F.pad(x, (0, width - place.content[1], 0, height - place.content[0]))
    return padded.clamp(0, 1), valid


def from_grid(values: Tensor, place: Placement) -> Tensor:
    """Bring a map on the grid, [h, w], back to the image's own pixels, [H, W], bilinearly."""
    content = values[: place.content[0], : place.content[1]][None, None]
    return F.interpolate(content, size=place.original, mode="bilinear", align_corners=False)[0, 0]


def standardise(image: Tensor, valid: Tensor) -> Tensor:
    """Give each image mean 0 and deviation 1 within its field of view, and 0 outside.

    Args:
        image: [B, 1, H, W] in [0, 1].
        valid: [B, 1, H, W] bool. Exactly black pixels (corners of a curved probe, blanked text) do not
            count for the statistics either.
    """
    view = (valid & (image > 0)).float()
    count = view.sum((-2, -1), keepdim=True).clamp(min=1)
    mean = (image * view).sum((-2, -1), keepdim=True) / count
    variance = ((image - mean).square() * view).sum((-2, -1), keepdim=True) / count
    return (image - mean) / (variance + 1e-4).sqrt() * valid
