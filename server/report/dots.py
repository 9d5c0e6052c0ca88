"""Charts of many: a pair of dots a patient or site, and the spread of a role's sites as boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from server.report.charts import LEFT, RIGHT, WIDTH, Axis, circle, line, svg, text


@dataclass(frozen=True)
class Pair:
    """One patient or site: the baseline's value beside the method's; `label` is shown where a pointer rests."""

    baseline: float
    method: float
    label: str = ""


def paired_chart(pairs: Sequence[Pair], axis: Axis, *, title: str) -> Markup:
    """Return two dots for each pair on one vertical line, from the least to the largest baseline."""
    top, plot = 8, 170
    bottom, slot = top + plot, (WIDTH - LEFT - RIGHT) / max(1, len(pairs))
    radius = f"{min(3.2, max(1.2, slot / 2.6)):.1f}"

    def y(value: float) -> str:
        return f"{bottom - plot * axis.share(value):.1f}"

    parts = []
    for tick in axis.ticks:
        parts.append(line(f"{LEFT}", y(tick), f"{WIDTH - RIGHT}", y(tick), "grid"))
        parts.append(text(f"{LEFT - 6}", f"{float(y(tick)) + 4:.1f}", f"{tick:g}", "end", "tick"))
    for number, pair in enumerate(sorted(pairs, key=lambda pair: (pair.baseline, pair.method, pair.label))):
        x = f"{LEFT + slot * (number + 0.5):.1f}"
        better = "infusion" if pair.method >= pair.baseline else "source"
        dots = [
            line(x, y(pair.baseline), x, y(pair.method), f"pair {better}"),
            circle(x, y(pair.baseline), radius, "dot baseline"),
            circle(x, y(pair.method), radius, "dot infusion"),
        ]
        words = f"{pair.label} baseline {pair.baseline:.1f}, released model {pair.method:.1f}".strip()
        parts.append(Markup("<g><title>{}</title>{}</g>").format(words, Markup("").join(dots)))
    return svg(parts, bottom + 6, title)


@dataclass(frozen=True)
class Spread:
    """A number over several sites: how many, least, quartiles, largest."""

    sites: int
    low: float
    first: float
    median: float
    third: float
    high: float


@dataclass(frozen=True)
class Box:
    """A row of `box_chart`; `kind` is the CSS class that colours it."""

    label: str
    kind: str
    spread: Spread


def box_chart(boxes: Sequence[Box], axis: Axis, *, title: str) -> Markup:
    """Return a row for each box: a line from least to largest, a thick one between the quartiles, a dot for the median.

    The medians stand at the right.
    """
    row_height, label_width, value_width = 24, 104, 46
    bottom, span = row_height * len(boxes) + 6, WIDTH - label_width - value_width

    def x(value: float) -> str:
        return f"{label_width + span * axis.share(value):.1f}"

    parts = []
    for tick in axis.ticks:
        parts.append(line(x(tick), "2", x(tick), f"{bottom}", "grid"))
        parts.append(text(x(tick), f"{bottom + 16}", f"{tick:g}", "middle", "tick"))
    for number, box in enumerate(boxes):
        own, y = box.spread, f"{row_height * (number + 0.5) + 4:.1f}"
        middle = f"{float(y) + 4:.1f}"
        parts.append(text(f"{label_width - 10}", middle, box.label, "end", "label"))
        parts.append(line(x(own.low), y, x(own.high), y, f"whisker {box.kind}"))
        parts.append(line(x(own.first), y, x(own.third), y, f"whisker box {box.kind}"))
        parts.append(circle(x(own.median), y, "4.5", f"dot ring {box.kind}"))
        parts.append(text(f"{WIDTH - 2}", middle, f"{own.median:.1f}", "end", "value"))
    return svg(parts, bottom + 22, title)
