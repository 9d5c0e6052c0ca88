"""Images as the exported graph takes them: on the study's grid, without the padding that it adds by itself."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from clients.data.images import PictureError
from clients.inputs import check_spacing, find_inputs
from clients.predict import Frames
from common.errors import RunError
from common.geometry import placement, to_grid
from common.study import Study

#: Enough to know the range of every layer's values; frames of one loop tell little more.
MAX_IMAGES, MAX_FRAMES = 48, 10


def read_pictures(study: Study, images: Path, spacing_mm: float | None) -> list[np.ndarray]:
    """Return images, float32 [1, 1, h, w] in [0, 1] each, on the study's grid; of a loop the first frames.

    Raises:
        RunError: if a file cannot be used, or there are fewer than two images.
        SiteFolderError: if `images` is a table that cannot be used.
    """
    check_spacing(spacing_mm)
    found = list(islice(_pictures(study, images, spacing_mm), MAX_IMAGES))
    if len(found) < 2:
        raise RunError(f"expected at least two images in {images}, one to calibrate and one to compare; found one.")
    return found


def speckle(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Return an image, float32 [1, 1, height, width] in [0, 1]: fully developed speckle, Rayleigh, over a bright disc.

    It stands in for ultrasound where there is none: what a graph computes and how long it takes hardly depends on it.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    disc = np.hypot(rows / height - 0.5, columns / width - 0.5) < 0.25
    return (rng.rayleigh(0.15, (1, 1, height, width)) * (1 + disc)).clip(0, 1).astype(np.float32)


def _pictures(study: Study, images: Path, spacing_mm: float | None) -> Iterator[np.ndarray]:
    for given in find_inputs(images):
        try:
            frames = Frames(study, given, spacing_mm)
            for _, image in islice(frames, MAX_FRAMES):
                place = placement(image.shape[0], image.shape[1], frames.spacing_mm, study.image)
                pixels, _ = to_grid(image, place, study.image, stride=study.network.stride)
                yield pixels[: place.content[0], : place.content[1]].numpy()[None, None]
        except PictureError as error:
            raise RunError(f"{given.name}: {error.code}: {error.message}. {error.remedy}.") from None
