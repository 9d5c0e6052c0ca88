"""Charts as inline SVG: plain functions from numbers to markup, coloured by the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

#: Drawn for a phone's width; a wider page scales it up a little.
WIDTH = 460
LEFT, RIGHT = 40, 10
LETTER_WIDTH = 7.0  # of the 12 px labels, on average
MOST_MARKERS = 80

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A value axis from the first tick to the last."""

    ticks: tuple[float, ...]

    @property
    def low(self) -> float:
        """The least value shown."""
        return self.ticks[0]

    @property
    def high(self) -> float:
        """The largest value shown."""
        return self.ticks[-1]

    def share(self, value: float) -> float:
        """Return where a value lies: 0 at `low`, 1 at `high`."""
        return (value - self.low) / (self.high - self.low)


def axis_over(values: Sequence[float]) -> Axis:
    """Return an axis with round ticks that holds all values and little else, in at most about five steps."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(tuple(round(i * step, 10) for i in range(first, last + 1)))


@dataclass(frozen=True)
class Interval:
    """A row of `interval_chart`: a mean with its bounds; `kind` is the CSS class that colours it."""

    label: str
    kind: str
    mean: float
    low: float
    high: float


def interval_chart(
    rows: Sequence[Interval], axis: Axis, *, title: str, reference: float | None = None, labels: int = 104
) -> Markup:
    """Return dots with intervals, one row each, their means at the right, over one value axis.

    Args:
        reference: a value marked by a line through all rows, or None.
        labels: width of the labels at the left, by which a wider one widens the chart.
    """
    row_height, label_width, value_width = 24, labels, 46
    width = WIDTH + labels - 104
    bottom = row_height * len(rows) + 6
    span = width - label_width - value_width

    def x(value: float) -> str:
        return f"{label_width + span * axis.share(value):.1f}"

    parts = []
    for tick in axis.ticks:
        parts.append(line(x(tick), "2", x(tick), f"{bottom}", "grid"))
        parts.append(text(x(tick), f"{bottom + 16}", f"{tick:g}", "middle", "tick"))
    if reference is not None:
        parts.append(line(x(reference), "2", x(reference), f"{bottom}", "reference"))
    for number, row in enumerate(rows):
        y = row_height * (number + 0.5) + 4
        middle = f"{y + 4:.1f}"
        parts.append(text(f"{label_width - 10}", middle, row.label, "end", "label"))
        parts.append(line(x(row.low), f"{y}", x(row.high), f"{y}", f"whisker {row.kind}"))
        parts.append(circle(x(row.mean), f"{y}", "4.5", f"dot {row.kind}"))
        parts.append(text(f"{width - 2}", middle, f"{row.mean:.1f}", "end", "value"))
    return svg(parts, bottom + 22, title, width)


@dataclass(frozen=True)
class Band:
    """A stage on the round axis of `round_chart`."""

    name: str
    first: int
    rounds: int


@dataclass(frozen=True)
class Curve:
    """A line of `round_chart`: points (round, value) in segments that are not joined; `kind` is its CSS class."""

    label: str
    kind: str
    segments: tuple[tuple[Point, ...], ...]

    @property
    def values(self) -> list[float]:
        """All values of the curve."""
        return [value for segment in self.segments for _, value in segment]


def round_chart(
    bands: Sequence[Band],
    curves: Sequence[Curve],
    axis: Axis,
    *,
    title: str,
    released: int | None = None,
    undone: Sequence[Point] = (),
) -> Markup:
    """Return curves over the rounds of a study, with its stages as bands.

    Args:
        released: the round marked as released, or None.
        undone: points (round, value) marked with a cross.
    """
    top, plot, total = 20, 150, sum(band.rounds for band in bands)
    bottom, slot = top + plot, (WIDTH - LEFT - RIGHT) / total

    def x(at: float) -> str:
        return f"{LEFT + slot * (at + 0.5):.1f}"

    def y(value: float) -> str:
        return f"{bottom - plot * axis.share(value):.1f}"

    parts = []
    for number, band in enumerate(bands, 1):
        left, width = LEFT + slot * band.first, slot * band.rounds
        name = band.name if LETTER_WIDTH * len(band.name) <= width else str(number)
        parts.append(
            Markup('<rect class="band{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>').format(
                number % 2, left, top, width, plot, band.name
            )
        )
        parts.append(text(f"{left + width / 2:.1f}", f"{top - 6}", name, "middle", "tick"))
    for tick in axis.ticks:
        parts.append(line(f"{LEFT}", y(tick), f"{WIDTH - RIGHT}", y(tick), "grid"))
        parts.append(text(f"{LEFT - 6}", f"{float(y(tick)) + 4:.1f}", f"{tick:g}", "end", "tick"))
    for index in range(0, total, max(1, -(-total // 12))):
        parts.append(text(x(index), f"{bottom + 16}", f"{index}", "middle", "tick"))
    if released is not None:
        parts.append(line(x(released), f"{top}", x(released), f"{bottom}", "released"))
        anchor, shift = ("end", -5) if released > total / 2 else ("start", 5)
        parts.append(text(f"{float(x(released)) + shift:.1f}", f"{bottom - 6}", "released", anchor, "label"))
    for curve in curves:
        marked = len(curve.values) <= MOST_MARKERS
        for segment in curve.segments:
            path = " ".join(f"{x(at)},{y(value)}" for at, value in segment)
            parts.append(
                Markup('<polyline class="curve {}" points="{}"><title>{}</title></polyline>').format(
                    curve.kind, path, curve.label
                )
            )
            if marked or len(segment) == 1:
                parts += [circle(x(at), y(value), "2.2", f"dot {curve.kind}") for at, value in segment]
    for at, value in undone:
        parts.append(text(x(at), f"{float(y(value)) + 5:.1f}", "×", "middle", "undone"))
    return svg(parts, bottom + 22, title)


def svg(parts: Sequence[Markup], height: int, title: str, width: int = WIDTH) -> Markup:
    """Return a picture that a screen reader announces by its title."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, title, Markup("").join(parts)
    )


def line(x1: str, y1: str, x2: str, y2: str, kind: str) -> Markup:
    """Return a straight line; `kind` is its CSS class here and below."""
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, x1, y1, x2, y2)


def circle(x: str, y: str, radius: str, kind: str) -> Markup:
    """Return a filled circle."""
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(kind, x, y, radius)


def text(x: str, y: str, words: str, anchor: str, kind: str) -> Markup:
    """Return words that start, end or have their middle at `x`."""
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, escape(words))
