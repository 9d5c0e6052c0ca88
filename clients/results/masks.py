"""The masks of a whole file, kept until it can be written: a bit a pixel, and no more than memory holds."""

import numpy as np

from clients.data.images import PictureError

#: A byte a pixel is what the libraries want in the end: 600 frames of 1024 x 768 are half of it.
MAX_PIXELS = 2**30


class Masks:
    """Masks of one size, in order."""

    def __init__(self) -> None:
        self.packed: list[np.ndarray] = []
        self.shape = (0, 0)

    def add(self, mask: np.ndarray) -> None:
        """Take a mask, bool [H, W]."""
        self.shape = (mask.shape[0], mask.shape[1])
        self.packed.append(np.packbits(mask))

    def stacked(self) -> np.ndarray:
        """Return all of them, uint8 [F, H, W] of 0 and 1. Raises PictureError where they are too many."""
        height, width = self.shape
        if len(self.packed) * height * width > MAX_PIXELS:
            raise PictureError(
                "long-loop",
                f"expected at most {MAX_PIXELS >> 20} megapixels in one file of masks, found {len(self.packed)} frames "
                f"of {width} x {height}",
                "Use the masks of single frames, or cut the loop",
            )
        flat = [np.unpackbits(own, count=height * width) for own in self.packed]
        return np.stack(flat).reshape(-1, height, width)
