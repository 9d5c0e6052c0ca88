"""What a site's images are like, in numbers, and which of them a person should look at. Nothing of this leaves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clients.data.frames import Frame, read_image, read_mask
from clients.data.manifest import SPLITS
from clients.data.site import Site

#: Shares of an image's pixels from which it is worth a look: at full brightness, and black.
SATURATED, BLACK = 0.15, 0.9
#: Root mean square difference of two images of 16 x 16 means, in grey levels of 255, below which they may be one.
ALIKE_LEVELS = 4.0
#: A field of view this many times larger or smaller than the site's usual one.
UNUSUAL_SIZE = 2.5
THUMBNAIL = 16


@dataclass(frozen=True)
class Look:
    """One image in numbers.

    Attributes:
        mean: grey level, in [0, 1].
        saturated, black: shares of the pixels.
        foreground: share that the mask marks, or None where there is none that may be opened.
        field_mm: long side, or None without spacing.
        thumbnail: [16, 16] means in levels of 255.
    """

    frame: Frame
    mean: float
    saturated: float
    black: float
    foreground: float | None
    field_mm: float | None
    thumbnail: np.ndarray


@dataclass(frozen=True)
class Remark:
    """Something to look at: what it is, and the images it is about."""

    what: str
    frames: tuple[Frame, ...]


def look_at(site: Site, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Look]:
    """Return every image in numbers. Masks are opened at a source only."""
    looks = []
    for done, frame in enumerate(site.frames, 1):
        looks.append(_look(frame, site.config.role == "source"))
        progress(done, len(site.frames))
    return looks


def remarks(looks: Sequence[Look]) -> list[Remark]:
    """Return what stands out, worst first."""
    return [
        Remark(what, tuple(frames))
        for what, frames in (
            ("nearly the same image in two patients or splits: is it one patient under two names?", _alike(looks)),
            (
                f"more than {SATURATED:.0%} of the pixels at full brightness",
                _where(looks, lambda x: x.saturated > SATURATED),
            ),
            (f"more than {BLACK:.0%} of the pixels black", _where(looks, lambda x: x.black > BLACK)),
            ("a much larger or smaller field than usual here: is spacing_mm right?", _unusual_size(looks)),
            ("a patient with images of several devices", _several_devices(looks)),
            ("a mask that marks nothing", _where(looks, lambda x: x.foreground == 0)),
            ("a mask that marks more than half of the image", _where(looks, lambda x: (x.foreground or 0) > 0.5)),
        )
        if frames
    ]


def table(site: Site, looks: Sequence[Look]) -> list[tuple[str, ...]]:
    """Return rows of split, patients, frames, patients with masks, devices, field in mm, grey and foreground."""
    rows: list[tuple[str, ...]] = []
    for split in SPLITS:
        own = [look for look in looks if look.frame.split == split]
        if own:
            rows.append(
                (
                    split,
                    str(len(site.patients(split))),
                    str(len(own)),
                    str(len(site.patients(split, labelled=True))),
                    ", ".join(sorted({look.frame.device or "not named" for look in own})),
                    _range([look.field_mm for look in own], "{:.0f}"),
                    _range([look.mean for look in own], "{:.2f}"),
                    _range([look.foreground for look in own], "{:.3f}"),
                )
            )
    return rows


def _look(frame: Frame, with_mask: bool) -> Look:
    image = read_image(frame)
    rows, columns = (np.linspace(0, side, THUMBNAIL + 1).astype(int) for side in image.shape)
    sums = np.add.reduceat(np.add.reduceat(image * 255.0, rows[:-1], 0), columns[:-1], 1)
    return Look(
        frame=frame,
        mean=float(image.mean()),
        saturated=float((image >= 1).mean()),
        black=float((image == 0).mean()),
        foreground=float(read_mask(frame).mean()) if with_mask and frame.mask else None,
        field_mm=frame.spacing_mm * max(image.shape) if frame.spacing_mm else None,
        thumbnail=sums / np.outer(np.diff(rows), np.diff(columns)),
    )


def _where(looks: Sequence[Look], chosen: Callable[[Look], bool]) -> list[Frame]:
    return [look.frame for look in looks if chosen(look)]


def _alike(looks: Sequence[Look]) -> list[Frame]:
    """Frames that look like one of another patient or split, each followed by those; in blocks, for memory's sake."""
    pictures = np.stack([look.thumbnail.ravel() for look in looks])
    squares = np.square(pictures).sum(1)
    limit = ALIKE_LEVELS**2 * THUMBNAIL**2
    numbers: dict[tuple[str, str], int] = {}
    owners = np.array([numbers.setdefault((look.frame.patient, look.frame.split), len(numbers)) for look in looks])
    found: list[int] = []
    left = np.ones(len(looks), bool)
    for start in range(0, len(looks), 512):
        block = slice(start, start + 512)
        distances = squares[block, None] + squares[None] - 2 * pictures[block] @ pictures.T
        alike = (distances < limit) & (owners[block, None] != owners[None])
        for row in np.flatnonzero(alike.any(1)):
            index = start + int(row)
            new = [index] * bool(left[index]) + np.flatnonzero(alike[row] & left).tolist()
            left[new] = False
            found += new
    return [looks[index].frame for index in found]


def _unusual_size(looks: Sequence[Look]) -> list[Frame]:
    sizes = [look.field_mm for look in looks if look.field_mm is not None]
    usual = float(np.median(sizes)) if sizes else 1.0
    low, high = usual / UNUSUAL_SIZE, usual * UNUSUAL_SIZE
    return _where(looks, lambda look: look.field_mm is not None and not low <= look.field_mm <= high)


def _several_devices(looks: Sequence[Look]) -> list[Frame]:
    devices: dict[str, set[str]] = {}
    for look in looks:
        devices.setdefault(look.frame.patient, set()).add(look.frame.device)
    return _where(looks, lambda look: len(devices[look.frame.patient]) > 1)


def _range(values: Sequence[float | None], form: str) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return "-"
    low, middle, high = (form.format(own) for own in (known[0], known[len(known) // 2], known[-1]))
    return f"{low} / {middle} / {high}"
