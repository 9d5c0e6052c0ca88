"""Frames as a console shows them: an image of a known shape, and what is written around it."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

HEIGHT, WIDTH = 240, 320
Shape = Callable[[], np.ndarray]


def linear() -> np.ndarray:
    """Where a linear probe's image lies, bool [H, W]."""
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[30:220, 80:240] = True
    return inside


def convex() -> np.ndarray:
    """Where a curved probe's image lies: a sector of a ring, 64 degrees wide."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    down, across = rows + 30.0, columns - WIDTH / 2
    radius, angle = np.hypot(down, across), np.degrees(np.arctan2(across, down))
    return (radius > 65) & (radius < 255) & (np.abs(angle) < 32)


def speckle(inside: np.ndarray, seed: int, shadow: bool = False) -> np.ndarray:
    """Rayleigh noise within a field, with a cyst, and maybe a bone's shadow; black elsewhere."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    level = 60 * np.exp(-rows / 300) * (1 + 0.3 * np.sin(columns / 20 + seed))
    level[np.hypot(rows - 120, columns - 150) < 18] = 4
    if shadow:
        level[(rows > 140) & (np.abs(columns - 175) < 14)] = 2
    return np.where(inside, np.clip(rng.rayleigh(1, inside.shape) * level, 1, 255), 0).astype(np.uint8)


TEXTS = (
    ((4, 4), "MUELLER ANNA 12.03.1987"),
    ((4, 224), "Hospital 4711"),
    ((250, 40), "Gn 54\nDR 60"),
    ((2, 110), "MI 0.9"),
)


def with_text(grey: np.ndarray) -> np.ndarray:
    """A frame with what a console writes around it, and a depth ruler beside it."""
    picture = Image.fromarray(grey)
    pen = ImageDraw.Draw(picture)
    for place, text in TEXTS:
        pen.text(place, text, fill=255)
    for depth in range(40, 220, 20):
        pen.line((246, depth, 250, depth), fill=200)
    pen.rectangle((300, 60, 310, 180), fill=128)  # the grey bar
    return np.asarray(picture)


def as_jpeg(grey: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))
