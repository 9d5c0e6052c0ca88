"""Text, calipers, dotted lines and arrows that a console drew into the image: where they are.

Three things tell them from tissue. B-mode is grey, so that colour was drawn. A beam is wider than a pulse is long:
echoes are smeared sideways, and nothing in tissue gives a bright stroke that is upright, long and thin. And a pen has
one level, which no echo keeps from pixel to pixel; a lossy copy does not keep it either.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from clients.data.formats.recording import Pixels
from clients.data.images import Grey, Mask
from clients.data.intake.view import brightest, enlarged, steps

Levels = npt.NDArray[np.float32]

#: Larger frames are looked at in steps of several pixels, of which the brightest counts: seconds instead of minutes.
MOST_SIDE = 800
#: A stroke is thinner than this share of the frame's height, and not below this many pixels.
WIDTH, LEAST_WIDTH = 0.012, 5
#: Least contrast of a stroke, in grey levels of 255, and in multiples of what speckle around it shows.
CONTRAST, TIMES_SPECKLE = 30.0, 5.0
#: Speckle that is darker than this, in grey levels of contrast, is not told from none.
LEAST_SPECKLE = 4.0
#: A stroke of one exact level: its least contrast, and its least pixels and rows, for echoes lie flat.
EVEN_CONTRAST, EVEN_PIXELS, EVEN_ROWS = 12.0, 10, 5
#: Neighbours that differ from it by less show an echo that fades; at most this share may. Saturated echoes have one
#: level, too, and more around them that is nearly as bright.
EVEN_FADES, SATURATED_FADES, EVEN_RIM = 12.0, 60.0, 0.2
#: Share of its strokes' contrast that the rest of a letter has.
REST = 0.4
#: A row of letters, at least this many times as wide as high, is a word; what is narrower is a mark.
WORD = 1.8
#: Dots in a row that make a line, the pixels between two, and how far one may lie off the line.
DOTS, DOTS_APART, DOTS_OFF = 6, 9, 1.2
#: Least contrast of a dot, in multiples of what speckle shows: more than of a stroke, for single pixels vary more.
DOT_TIMES_SPECKLE = 10.0
#: Difference of two channels, of 255: from where on a pixel is coloured, and what is taken along beside such a one.
COLOUR, COLOUR_RIM = 48, 20


def find_marks(pixels: Pixels, grey: Grey, view: Mask) -> Mask:
    """Where a frame was drawn on, bool [H, W], with a rim of a pixel or two.

    Args:
        pixels: the frame as it was read, [H, W] or [H, W, 3].
        grey: the same as grey levels.
        view: where the probe's image is; only there is the speckle measured.
    """
    step = steps(grey.shape, MOST_SIDE)
    levels = brightest(grey, step) * np.float32(255 / np.iinfo(grey.dtype).max)
    within = brightest(view, step)
    width = max(LEAST_WIDTH, round(WIDTH * len(levels)) | 1)
    drawn = _letters(levels, within, width) | _dotted(levels, within, width)
    drawn = ndimage.binary_dilation(_with_words(drawn, width), iterations=max(1, width // 5))
    return enlarged(drawn, step, grey.shape) | _coloured(pixels, width * step)


def _letters(levels: Levels, within: Mask, width: int) -> Mask:
    """Strokes, and what belongs to the same letter, cross or arrow but lies across, or is its rim."""
    contrast = _strokes(levels, width)
    strokes = (contrast > CONTRAST) & (contrast > TIMES_SPECKLE * _speckle(contrast, within))
    thin = levels - ndimage.grey_opening(levels, footprint=_disc(width // 2))
    return _whole(strokes, contrast, thin, width) | _whole(_even(levels, thin), thin, thin, width)


def _whole(seeds: Mask, contrast: Levels, thin: Levels, width: int) -> Mask:
    """Seeds, and what is connected with them and has enough of their contrast."""
    if not seeds.any():
        return seeds
    reach = ndimage.grey_dilation(np.where(seeds, contrast, 0), size=(2 * width + 1, 2 * width + 1))
    rest = (reach > 0) & (thin > REST * reach)
    labels, _ = ndimage.label(rest | seeds, np.ones((3, 3)))
    return np.isin(labels, np.unique(labels[seeds]))


def _even(levels: Levels, thin: Levels) -> Mask:
    """Strokes of one exact level, whatever their direction, with nothing of nearly that level around them.

    Echoes fade, and next to a pixel of tissue hardly one has its very level. A lossy copy has no such strokes.

    Args:
        thin: how much brighter a pixel is than what is wider than a stroke.
    """
    numbers = np.full(levels.shape, -1, np.int32)
    bright = thin > EVEN_CONTRAST
    if not bright.any():
        return bright
    count = int(bright.sum())
    numbers[bright] = np.arange(count)
    fades = np.where(levels == levels.max(), SATURATED_FADES, EVEN_FADES)
    pairs, near, rim = [], np.zeros(count), np.zeros(count)
    for down, across in ((0, 1), (1, -1), (1, 0), (1, 1)):
        one = (slice(0, len(levels) - down), slice(max(0, -across), levels.shape[1] - max(0, across)))
        other = (slice(down, None), slice(max(0, across), levels.shape[1] + min(0, across)))
        apart = np.abs(levels[one] - levels[other])
        alike = (apart == 0) & bright[one] & bright[other]
        pairs.append(np.stack([numbers[one][alike], numbers[other][alike]]))
        for side in (one, other):
            there = bright[side] & (apart > 0)
            np.add.at(rim, numbers[side][there], 1)
            np.add.at(near, numbers[side][there & (apart < fades[side])], 1)
    first, second = np.concatenate(pairs, 1)
    graph = sparse.coo_array((np.ones(len(first), bool), (first, second)), (count, count))
    labels = sparse.csgraph.connected_components(graph, directed=False)[1]
    sizes, rims, nears = (np.bincount(labels, own) for own in (np.ones(count), rim, near))
    rows = np.nonzero(bright)[0]
    first_row, last_row = np.full(len(sizes), len(levels)), np.zeros(len(sizes), int)
    np.minimum.at(first_row, labels, rows)
    np.maximum.at(last_row, labels, rows)
    drawn = (sizes >= EVEN_PIXELS) & (last_row - first_row >= EVEN_ROWS - 1) & (nears <= EVEN_RIM * rims)
    found = np.zeros_like(bright)
    found[bright] = drawn[labels]
    return found


def _strokes(levels: Levels, width: int) -> Levels:
    """Contrast of a bright line through each pixel, upright or inclined up to 45 degrees, thinner than `width`.

    The bar of a cross or an E interrupts a stroke; such a gap is closed where it is bright, too.
    """
    thin = levels - ndimage.grey_opening(levels, (1, width))
    with_bars = levels - ndimage.grey_opening(levels, (1, 3 * width))
    found = np.zeros_like(levels)
    for line in _lines(width):
        whole = np.minimum(ndimage.grey_closing(thin, footprint=line), with_bars)
        np.maximum(found, ndimage.grey_opening(whole, footprint=line), out=found)
    return found


def _speckle(contrast: Levels, within: Mask) -> Levels:
    """The mean contrast around each pixel; the strongest tenth counts no more than the rest, it may be drawn."""
    if not within.any():
        return np.full_like(contrast, LEAST_SPECKLE)
    usual = np.minimum(contrast, np.percentile(contrast[within], 90))
    side = len(contrast) // 6
    weight = ndimage.uniform_filter(within.astype(np.float32), side)
    around: Levels = ndimage.uniform_filter(np.where(within, usual, 0), side) / np.maximum(weight, 1e-3)
    return around + LEAST_SPECKLE


def _dotted(levels: Levels, within: Mask, width: int) -> Mask:
    """Dots that lie in a row."""
    lines = [ndimage.grey_opening(levels, footprint=line) for line in (*_lines(width), np.ones((1, width)))]
    contrast = levels - np.max(lines, 0)
    dots = (contrast > CONTRAST) & (contrast > DOT_TIMES_SPECKLE * _speckle(contrast, within))
    near, _ = ndimage.label(ndimage.binary_dilation(dots, _disc(DOTS_APART * width // LEAST_WIDTH // 2)))
    single, _ = ndimage.label(dots, np.ones((3, 3)))
    found = np.zeros_like(dots)
    for number, place in enumerate(ndimage.find_objects(near), 1):
        own = dots[place] & (near[place] == number)
        if len(np.unique(single[place][own])) < DOTS:
            continue
        across = np.linalg.eigvalsh(np.cov(np.argwhere(own).T))[0]
        found[place] |= own & (across <= (DOTS_OFF * width / LEAST_WIDTH) ** 2)
    return found


def _with_words(drawn: Mask, width: int) -> Mask:
    """Letters in a row become one block, a letter wider to both sides: what is left of a word could still be read."""
    blocks, _ = ndimage.label(ndimage.binary_dilation(drawn, np.ones((1, 4 * width + 1))))
    words = drawn.copy()
    for number, place in enumerate(ndimage.find_objects(blocks), 1):
        rows, columns = np.nonzero(drawn[place] & (blocks[place] == number))
        height = int(np.ptp(rows)) + 1
        if np.ptp(columns) < WORD * height:
            continue
        top, left = place[0].start + rows.min(), place[1].start + columns.min()
        words[top : top + height, max(0, left - height) : place[1].start + columns.max() + height] = True
    return words


def _coloured(pixels: Pixels, width: int) -> Mask:
    if pixels.ndim == 2:
        return np.zeros(pixels.shape, bool)
    colour = np.ptp(pixels.astype(np.int16), axis=-1)
    rim = ndimage.binary_propagation(colour > COLOUR, mask=colour > COLOUR_RIM)
    return _with_words(ndimage.binary_dilation(rim, iterations=2), width)


def _lines(length: int) -> Iterator[Mask]:
    """Lines through the middle of a square [length, length], from upright to 45 degrees to either side."""
    middle, rows = length // 2, np.arange(length)
    for slope in (-1.0, -0.5, 0.0, 0.5, 1.0):
        line = np.zeros((length, length), bool)
        line[rows, middle + np.rint(slope * (rows - middle)).astype(int)] = True
        yield line
        if abs(slope) == 0.5:
            yield line.T


def _disc(radius: int) -> Mask:
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc: Mask = rows**2 + columns**2 <= (radius + 0.5) ** 2
    return disc
