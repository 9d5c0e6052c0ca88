"""Where the ultrasound image lies within a frame, and which frames of a loop show something new."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from clients.data.formats.recording import Field
from clients.data.images import Grey, Mask

#: Share of full brightness above which a pixel shows something; screens are black to within compression's noise.
DARK = 0.05
#: An area of one exact level, of more than this brightness and this share of the frame, is a panel and no tissue.
PANEL, PANEL_SHARE = 0.15, 0.01
#: A letter is about this share of the frame's height; what is thinner is text, a ruler or a frame.
STROKE = 0.03
#: A smaller share of the frame is no field of view.
LEAST_SHARE = 0.08
#: Mean difference of two frames of 32 x 32 px, in grey levels of 255, up to which they show the same.
SAME_LEVELS = 3.0


def bright(frame: Grey) -> Mask:
    """Where a frame [H, W] shows anything but a panel, which may be larger than the image beside it."""
    levels = frame * (1 / np.iinfo(frame.dtype).max)
    even = (ndimage.maximum_filter(levels, 3) == ndimage.minimum_filter(levels, 3)) & (levels > PANEL)
    labels, _ = ndimage.label(even)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    found: Mask = (levels > DARK) & ~(sizes >= PANEL_SHARE * levels.size)[labels]
    return found


def field_of_view(bright: Mask, region: Field | None = None) -> Mask | None:
    """The pixels of the sector or rectangle that the probe sees, bool [H, W], or None where nothing looks like one.

    The largest connected bright area, rid of what is as thin as letters, and filled row by row: linear and convex
    fields alike have one interval in each row.

    Args:
        bright: where any frame of a recording is bright, so that a dark one has the others' field.
        region: the rectangle that the scanner's header tells; nothing outside of it belongs to the field.
    """
    height = bright.shape[0]
    if region is not None:
        inside = np.zeros_like(bright)
        inside[region.top : region.bottom, region.left : region.right] = True
        bright = bright & inside
    stroke = max(2, round(STROKE * height))
    # Speckle is full of dark pixels: close what is nearer than a third of a letter, else text would close as well.
    solid = ndimage.binary_closing(np.pad(bright, stroke), _disc(max(1, stroke // 3)))[stroke:-stroke, stroke:-stroke]
    solid = ndimage.binary_fill_holes(_largest(solid))
    solid = ndimage.binary_opening(np.pad(solid, stroke, mode="edge"), _disc(stroke))[stroke:-stroke, stroke:-stroke]
    field = _filled_rows(_largest(solid))
    if field.mean() < LEAST_SHARE:
        return None
    return field


class Novelty:
    """Tells of the frames of a loop, one after the other, whether they show something new."""

    def __init__(self) -> None:
        self._last: npt.NDArray[np.float32] | None = None

    def is_new(self, frame: Grey) -> bool:
        """Whether a frame differs from the last one that was new."""
        small = _thumbnail(frame)
        if self._last is not None and np.abs(small - self._last).mean() <= SAME_LEVELS:
            return False
        self._last = small
        return True


def _thumbnail(frame: Grey) -> npt.NDArray[np.float32]:
    """A frame as 32 x 32 means, in levels of 255."""
    rows, columns = (np.linspace(0, side, 33).astype(int)[:-1] for side in frame.shape)
    sums = np.add.reduceat(np.add.reduceat(frame.astype(np.float64), rows, 0), columns, 1)
    sizes = np.outer(np.diff([*rows, frame.shape[0]]), np.diff([*columns, frame.shape[1]]))
    return (sums / np.maximum(sizes, 1) * (255 / np.iinfo(frame.dtype).max)).astype(np.float32)


def _largest(mask: Mask) -> Mask:
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _filled_rows(mask: Mask) -> Mask:
    """Each row filled from its first to its last pixel."""
    return np.logical_or.accumulate(mask, 1) & np.logical_or.accumulate(mask[:, ::-1], 1)[:, ::-1]


def _disc(radius: int) -> Mask:
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc: Mask = rows**2 + columns**2 <= radius**2
    return disc
