"""Where the ultrasound image lies within a frame, and which frames of a loop show something new."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from clients.data.formats.recording import Field
from clients.data.images import Grey, Mask

#: Share of full brightness above which a pixel shows something. A JPEG's noise around letters stays below; so does a
#: deep shadow, which is blanked where it reaches the edge of the field: better that than a name.
DARK = 0.05
#: An area of one exact level, of more than this brightness and this share of the frame, is a panel and no tissue.
PANEL, PANEL_SHARE = 0.15, 0.01
#: A letter is about this share of the frame's height; what is thinner is text, a ruler or a frame.
STROKE = 0.03
#: A smaller share of the frame is no field of view.
LEAST_SHARE = 0.08
#: Larger frames are looked at in squares of several pixels, of which the brightest counts: seconds instead of minutes.
MOST_SIDE = 1600
#: Mean difference of two frames of 32 x 32 px, in grey levels of 255, up to which they show the same.
SAME_LEVELS = 3.0


def bright(frame: Grey) -> Mask:
    """Where a frame [H, W] shows anything but a panel, which may be larger than the image beside it."""
    step, top = steps(frame.shape, MOST_SIDE), np.iinfo(frame.dtype).max
    levels = brightest(frame, step)
    even = (ndimage.maximum_filter(levels, 3) == ndimage.minimum_filter(levels, 3)) & (levels > PANEL * top)
    labels, _ = ndimage.label(even)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return enlarged((levels > DARK * top) & ~(sizes >= PANEL_SHARE * levels.size)[labels], step, frame.shape)


def field_of_view(bright: Mask, region: Field | None = None) -> Mask | None:
    """The pixels of the sector or rectangle that the probe sees, bool [H, W], or None where nothing looks like one.

    The largest connected bright area, rid of what is as thin as letters, and filled row by row: linear and convex
    fields alike have one interval in each row.

    Args:
        bright: where any frame of a recording is bright, so that a dark one has the others' field.
        region: the rectangle that the scanner's header tells; nothing outside of it belongs to the field.
    """
    if region is not None:
        inside = np.zeros_like(bright)
        inside[region.top : region.bottom, region.left : region.right] = True
        bright = bright & inside
    step = steps(bright.shape, MOST_SIDE)
    small = brightest(bright, step)
    stroke = max(2, round(STROKE * len(small)))
    # Speckle is full of dark pixels: close what is nearer than a third of a letter, else text would close as well.
    near = max(1, stroke // 3)
    solid = _shrunk(_grown(np.pad(small, stroke), near), near)[stroke:-stroke, stroke:-stroke]
    solid = ndimage.binary_fill_holes(_largest(solid))
    solid = _grown(_shrunk(np.pad(solid, stroke, mode="edge"), stroke), stroke)[stroke:-stroke, stroke:-stroke]
    field = _filled_rows(_largest(solid))
    if field.mean() < LEAST_SHARE:
        return None
    found = enlarged(field, step, bright.shape)
    return found if region is None else found & inside


def steps(shape: tuple[int, ...], most_side: int) -> int:
    """Return the side of the squares by which a frame of `shape` is at most `most_side` squares long."""
    return -(-max(shape) // most_side)


def brightest(values: np.ndarray, step: int) -> np.ndarray:
    """Return of each square of `step` pixels the largest value; what is left of a square at the edge counts too."""
    if step == 1:
        return values
    height, width = (side // step + (side % step > 0) for side in values.shape)
    padded = np.pad(values, [(0, height * step - values.shape[0]), (0, width * step - values.shape[1])], mode="edge")
    return padded.reshape(height, step, width, step).max((1, 3))


def enlarged(mask: Mask, step: int, shape: tuple[int, ...]) -> Mask:
    """Return a mask of squares as one of pixels [H, W] = `shape`."""
    return mask if step == 1 else np.repeat(np.repeat(mask, step, 0), step, 1)[: shape[0], : shape[1]]


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
    sums = np.add.reduceat(np.add.reduceat(frame, rows, 0, dtype=np.uint64), columns, 1)
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


def _grown(mask: Mask, radius: int) -> Mask:
    """A mask and all that lies within `radius` pixels of it. By distances: a disc's pixels are a thousand and more."""
    if not mask.any():
        return mask
    grown: Mask = ndimage.distance_transform_edt(~mask) <= radius
    return grown


def _shrunk(mask: Mask, radius: int) -> Mask:
    """What is further than `radius` pixels from the mask's outside, to which all beyond the edges belongs."""
    shrunk: Mask = (ndimage.distance_transform_edt(np.pad(mask, 1)) > radius)[1:-1, 1:-1]
    return shrunk
