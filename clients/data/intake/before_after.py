"""A sheet of frames before and after an intake, for whoever looks whether anything was left in. It stays here."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from clients.data.images import Grey
from common.files import write_atomically

SIDE, COLUMNS, MOST = 240, 3, 48
#: In the picture before, what was blanked is red, and what was filled is tinted so that it still can be read.
REMOVED, FILLED = (214, 40, 40), (255, 149, 0)


class BeforeAfter:
    """Collects pairs, evenly thinned out so that late files are seen as well as early ones."""

    def __init__(self) -> None:
        self._pairs: list[tuple[str, Image.Image]] = []
        self._seen, self._step = 0, 1

    def add(self, name: str, before: Grey, after: Grey) -> None:
        """Keep a frame of the file `name`, or not: at most `MOST` are kept, of all that are ever added."""
        if self._seen % self._step == 0:
            self._pairs.append((name, _pair(before, after)))
            if len(self._pairs) > MOST:
                self._pairs, self._step = self._pairs[::2], self._step * 2
        self._seen += 1

    def forget(self, name: str) -> None:
        """Drop the frames of a file that was not taken in after all."""
        self._pairs = [pair for pair in self._pairs if pair[0] != name]

    def write(self, path: Path) -> None:
        """Write the sheet as PNG, readable by its owner alone: the pictures before hold whatever was burned in.

        Raises:
            RunError: if it cannot be written.
        """
        rows = -(-len(self._pairs) // COLUMNS)
        sheet = Image.new("RGB", (COLUMNS * (2 * SIDE + 12), max(1, rows) * (SIDE + 12)), (250, 250, 250))
        for place, (_, pair) in enumerate(self._pairs):
            sheet.paste(pair, (place % COLUMNS * (2 * SIDE + 12) + 4, place // COLUMNS * (SIDE + 12) + 4))
        content = io.BytesIO()
        sheet.save(content, "PNG")
        write_atomically(path, content.getvalue(), then="take the images in again, or give another --sheet")


def _pair(before: Grey, after: Grey) -> Image.Image:
    scale = 255 / np.iinfo(before.dtype).max
    left, right = (np.repeat((own * scale).astype(np.uint8)[..., None], 3, -1) for own in (before, after))
    left[before != after] = left[before != after] // 2 + np.array(FILLED, np.uint8) // 2
    left[(before > 0) & (after == 0)] = REMOVED
    pair = Image.new("RGB", (2 * SIDE + 4, SIDE))
    for place, pixels in enumerate((left, right)):
        picture = Image.fromarray(pixels)
        picture.thumbnail((SIDE, SIDE))
        pair.paste(picture, (place * (SIDE + 4), 0))
    return pair
