"""What the intake finds of text and marks within an image: `python -m simulations.benchmarks.marks --out FILE`.

Phantom images of every probe get text, calipers, dotted lines and arrows in known places, as a console draws them, and
are stored as PNG and JPEG. Writes how much of it was found, and how much of images without marks was taken for some.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from clients.data.formats.recording import to_grey
from clients.data.intake.marks import find_marks
from common.options import Seed, only
from simulations.phantom.devices import HELD_OUT, PROFILES
from simulations.phantom.formation import render_frame
from simulations.publication import origin, publish

Drawing = Callable[[ImageDraw.ImageDraw, np.random.Generator, tuple[int, int], int, tuple[int, int, int]], None]

TEXTS = ("MUELLER ANNA 12.03.1987", "HOSP-4711 f 9y", "LT WRIST LONG", "Dist 12.4 mm", "St. Mary", "PALMAR", "RAD")
COLOURS = {
    "white": (255, 255, 255),
    "light grey": (200, 200, 200),
    "grey": (140, 140, 140),
    "yellow": (255, 230, 0),
    "green": (0, 220, 90),
}
#: How often a phantom's rows and columns are doubled before it is drawn on: a console shows images larger than they
#: are sampled.
ZOOMS = (1, 2)
#: Images that are looked at as they are, for each that is drawn on: to be mistaken is rare.
PLAIN = 5
#: Found: this share of an object's pixels. Below it, a letter may still be read.
WHOLE = 0.8


def text(pen: ImageDraw.ImageDraw, rng: np.random.Generator, at: tuple[int, int], unit: int, colour: tuple) -> None:
    """Draw a line of text, 10 to 16 px high, at times with the dark rim by which consoles keep it readable."""
    font = ImageFont.load_default(int(unit * rng.integers(10, 17)))
    rim = unit if rng.random() < 0.3 else 0
    pen.text(at, str(rng.choice(TEXTS)), fill=colour, font=font, stroke_width=rim, stroke_fill=(0, 0, 0))


def caliper(pen: ImageDraw.ImageDraw, rng: np.random.Generator, at: tuple[int, int], unit: int, colour: tuple) -> None:
    """Draw a cross, upright or inclined, 7 to 11 px wide."""
    arm, (x, y) = unit * int(rng.integers(3, 6)), at
    inclined = rng.random() < 0.5
    for dx, dy in ((arm, arm), (arm, -arm)) if inclined else ((arm, 0), (0, arm)):
        pen.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=unit)


def dotted(pen: ImageDraw.ImageDraw, rng: np.random.Generator, at: tuple[int, int], unit: int, colour: tuple) -> None:
    """Draw a row of dots, 4 to 6 px apart, in any direction."""
    angle, apart = rng.uniform(0, np.pi), unit * rng.uniform(4, 6)
    for number in range(int(rng.integers(10, 20))):
        x, y = at[0] + number * apart * np.cos(angle), at[1] + number * apart * np.sin(angle)
        pen.rectangle((round(x), round(y), round(x) + unit - 1, round(y) + unit - 1), fill=colour)


def arrow(pen: ImageDraw.ImageDraw, rng: np.random.Generator, at: tuple[int, int], unit: int, colour: tuple) -> None:
    """Draw an arrow of 20 to 40 px in any direction."""
    angle, length = rng.uniform(0, 2 * np.pi), unit * rng.uniform(20, 40)
    tip = np.array(at) + length * np.array([np.cos(angle), np.sin(angle)])
    pen.line((*at, *tip), fill=colour, width=unit)
    for side in (angle + 2.6, angle - 2.6):
        pen.line((*tip, *(tip + 7 * unit * np.array([np.cos(side), np.sin(side)]))), fill=colour, width=unit)


KINDS: dict[str, Drawing] = {"text": text, "caliper": caliper, "dotted line": dotted, "arrow": arrow}


@dataclass(frozen=True)
class Found:
    """What was found of one kind in one colour: shares of the pixels, and of the objects (a letter, a dot, a cross)
    of which `WHOLE` or more was found."""

    kind: str
    colour: str
    stored: str
    objects: int
    pixel_recall: float
    object_recall: float


@dataclass(frozen=True)
class Mistaken:
    """What was taken for marks in images of a probe without any: as shares of the pixels, in [0, 1]."""

    profile: str
    held_out: bool
    images: int
    images_touched: int
    pixels: float
    bone_pixels: float


def as_jpeg(pixels: np.ndarray) -> np.ndarray:
    """The frame after a JPEG of quality 75, whose colours have half the resolution."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


Store = Callable[[np.ndarray], np.ndarray]
STORED: dict[str, Store] = {"png": np.asarray, "jpeg": as_jpeg}


def phantoms(seed: int, images: int) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """Probe, number, grey levels [H, W] and bone mask [H, W] of `images` patients of each probe."""
    for place, (name, profile) in enumerate(PROFILES.items()):
        for number in range(images):
            frame = render_frame(seed=seed, patient=place * images + number, frame=0, profile=profile)
            yield name, number, frame.image, frame.mask > 0


def zoomed(grey: np.ndarray, zoom: int) -> np.ndarray:
    """RGB [H, W, 3] as a console enlarges it."""
    picture = Image.fromarray(grey)
    larger = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(larger)[..., None], 3, -1)


def drawn_on(rgb: np.ndarray, kind: str, colour: str, zoom: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A frame with marks of a kind, and where they are, bool [H, W]: half covered by the pen or more."""
    picture, cover = Image.fromarray(rgb), Image.new("RGB", rgb.shape[1::-1])
    height, width = rgb.shape[:2]
    for number in range(4):
        at = (int(rng.uniform(0.1, 0.6) * width), int((0.15 + 0.2 * number + rng.uniform(0, 0.05)) * height))
        state = rng.bit_generator.state
        KINDS[kind](ImageDraw.Draw(picture), rng, at, zoom, COLOURS[colour])
        rng.bit_generator.state = state
        KINDS[kind](ImageDraw.Draw(cover), rng, at, zoom, (255, 255, 255))
    return np.asarray(picture), np.asarray(cover)[..., 0] >= 128


def measure(seed: int, images: int) -> tuple[list[Found], list[Mistaken]]:
    """Draw on and look at every image; see `Found` and `Mistaken`."""
    rng = np.random.default_rng(seed)
    tally: dict[tuple[str, str, str], list[tuple[int, int, int, int]]] = {}
    plain: dict[str, list[tuple[int, int, int, int]]] = {}
    for name, number, grey, bone in phantoms(seed, images * PLAIN):
        everywhere = np.ones_like(bone)
        taken = find_marks(grey, grey, everywhere)
        plain.setdefault(name, []).append((bone.size, int(taken.sum()), int(bone.sum()), int((taken & bone).sum())))
        for kind in KINDS if number < images else ():
            for colour in COLOURS:
                zoom = int(rng.choice(ZOOMS))
                marked, truth = drawn_on(zoomed(grey, zoom), kind, colour, zoom, rng)
                for stored, store in STORED.items():
                    pixels = store(marked)
                    found = find_marks(pixels, to_grey(pixels)[0], np.ones_like(truth))
                    tally.setdefault((kind, colour, stored), []).append(_counts(truth, found))
    return [_found(key, np.sum(own, 0)) for key, own in tally.items()], [
        _mistaken(name, np.array(own)) for name, own in plain.items()
    ]


def _counts(truth: np.ndarray, found: np.ndarray) -> tuple[int, int, int, int]:
    labels, count = ndimage.label(truth, np.ones((3, 3)))
    shares = ndimage.mean(found, labels, np.arange(1, count + 1))
    return int(truth.sum()), int((truth & found).sum()), count, int(np.sum(shares >= WHOLE))


def _found(key: tuple[str, str, str], sums: np.ndarray) -> Found:
    return Found(*key, int(sums[2]), float(sums[1] / sums[0]), float(sums[3] / sums[2]))


def _mistaken(name: str, counts: np.ndarray) -> Mistaken:
    pixels, taken, bone, of_bone = (float(own) for own in counts.sum(0))
    touched = int(np.count_nonzero(counts[:, 1]))
    return Mistaken(name, name in HELD_OUT, len(counts), touched, taken / pixels, of_bone / max(bone, 1))


def page(found: list[Found], mistaken: list[Mistaken], settings: dict[str, object]) -> str:
    """Return the tables as Markdown."""
    lines = [
        "<!-- written by `python -m simulations.benchmarks.marks` -->",
        f"`{settings['command']}`",
        "",
        f"Seed {settings['seed']}; {settings['images']} phantom images of each probe drawn on. Objects (letters, dots,"
        f" crosses) of which {WHOLE:.0%} of the pixels were found, in %, of PNG / JPEG:",
        "",
        f"| | {' | '.join(COLOURS)} |",
        f"| --- |{' --- |' * len(COLOURS)}",
    ]
    shares = {(own.kind, own.colour, own.stored): own.object_recall for own in found}
    for kind in KINDS:
        cells = [" / ".join(f"{100 * shares[kind, colour, stored]:.0f}" for stored in STORED) for colour in COLOURS]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    lines += [
        "",
        "Taken for marks in images without any:",
        "",
        "| probe | images touched | % of all pixels | % of the bone's pixels |",
        "| --- | --- | --- | --- |",
    ]
    for own in mistaken:
        name = f"{own.profile}{' (never tuned on)' if own.held_out else ''}"
        shown = f"{100 * own.pixels:.3f} | {100 * own.bone_pixels:.3f}"
        lines.append(f"| {name} | {own.images_touched} of {own.images} | {shown} |")
    return "\n".join([*lines, ""])


def main(
    out: Annotated[Path, typer.Option(metavar="FILE", help="the tables' path, without its ending")],
    seed: Seed = 0,
    images: Annotated[int, typer.Option(min=1, help="of each probe to draw on")] = 4,
) -> None:
    """Draw text and marks on phantom images, and count what the intake finds of them; write OUT.md and OUT.json."""
    found, mistaken = measure(seed, images)
    settings = origin("simulations.benchmarks.marks", seed) | {"images": images}
    content = {
        **settings, "found": [asdict(own) for own in found], "mistaken": [asdict(own) for own in mistaken]
    }  # fmt: skip
    publish(out, content, page(found, mistaken, settings))


if __name__ == "__main__":
    only(main, "python -m simulations.benchmarks.marks --out docs/marks")
