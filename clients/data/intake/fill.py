"""Places of an image that were drawn on, filled with tissue from beside them."""

import numpy as np
from scipy import ndimage

from clients.data.images import Grey, Mask

#: How far tissue is taken from, in heights and widths of the place that is filled, and in how many steps.
FAR, STEPS = 3.0, 12
#: Pixels around a place by which it is compared.
RIM = 3


def filled(grey: Grey, marks: Mask, view: Mask) -> Grey:
    """A frame [H, W] whose `marks` show what is beside them: copied whole, for speckle cannot be interpolated.

    Each connected place is copied from where its surroundings are most alike, within `view` and without marks; where
    there is no such place, it takes the nearest pixels. All other pixels stay as they are.
    """
    after = grey.copy()
    usable = view & ~marks
    labels, _ = ndimage.label(marks, np.ones((3, 3)))
    left = np.zeros_like(marks)
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        rows, columns = np.nonzero(labels[place] == number)
        rows, columns = rows + place[0].start, columns + place[1].start
        origin = _most_alike(grey, usable, rows, columns)
        if origin is None:
            left[rows, columns] = True
        else:
            after[rows, columns] = grey[rows + origin[0], columns + origin[1]]
    if left.any() and usable.any():
        nearest = ndimage.distance_transform_edt(~usable, return_distances=False, return_indices=True)
        after[left] = grey[tuple(nearest[:, left])]
    return after


def _most_alike(grey: Grey, usable: Mask, rows: np.ndarray, columns: np.ndarray) -> tuple[int, int] | None:
    """The shift to the place that is unmarked as a whole, and whose rim differs least."""
    box = [(int(own.min()) - RIM, int(own.max()) + RIM + 1) for own in (rows, columns)]
    own = np.zeros((box[0][1] - box[0][0], box[1][1] - box[1][0]), bool)
    own[rows - box[0][0], columns - box[1][0]] = True
    rim = np.argwhere(ndimage.binary_dilation(own, iterations=RIM) & ~own) + np.array([box[0][0], box[1][0]])
    height, width = grey.shape
    rim = rim[((rim >= 0) & (rim < (height, width))).all(1)]
    rim = rim[usable[tuple(rim.T)]]
    if not len(rim):
        return None
    before = grey[tuple(rim.T)].astype(np.float32)
    best, least = None, np.inf
    for down in _shifts(own.shape[0], height):
        for across in _shifts(own.shape[1], width):
            if not (box[0][0] + down >= 0 and box[0][1] + down <= height):
                continue
            if not (box[1][0] + across >= 0 and box[1][1] + across <= width):
                continue
            if not usable[rows + down, columns + across].all():
                continue
            there = rim + np.array([down, across])
            difference = np.abs(grey[tuple(there.T)].astype(np.float32) - before).mean()
            if difference < least:
                best, least = (down, across), difference
    return best


def _shifts(side: int, most: int) -> np.ndarray:
    """Shifts along an axis, of up to `FAR` sides either way; short marks need more than their own side."""
    far = min(max(FAR * side, 40), most)
    return np.unique(np.rint(np.linspace(-far, far, 2 * STEPS + 1)).astype(int))
