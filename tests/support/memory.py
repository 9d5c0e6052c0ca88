"""The memory of processes over the rounds of a run: read, judged for growth, and drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from markupsafe import Markup

from server.report.charts import Band, Curve, axis_over, circle, round_chart, svg, text

#: What a process loads and caches in its first rounds is no growth; of fewer rounds after them nothing is said.
WARM_UP, FEWEST = 5, 10
#: What is measured, as the last word of its name, and its colour.
COLOURS = {
    "worker": "#b8500c",
    "supernode": "#0a6ba8",
    "superexec": "#06795a",
    "superlink": "#8c4a7c",
    "serverapp": "#1c2229",
    "proxy": "#68737d",
}
#: Height of the report's chart of rounds.
PLOT_HEIGHT = 192
#: The report's ink on its ground, for a picture that stands alone.
_STYLE = (
    "svg{background:#fff;font:12px sans-serif}text{fill:#1c2229}.tick{fill:#5a6570}.grid{stroke:#d9dee3}"
    ".band1{fill:#fff}.curve{fill:none;stroke-width:1.8}"
) + "".join(f".curve.{kind}{{stroke:{ink}}}.dot.{kind}{{fill:{ink}}}" for kind, ink in COLOURS.items())


@dataclass(frozen=True)
class Sample:
    """What one process held at the end of a round: resident memory in MB (10^6 bytes)."""

    round: int
    pid: int
    mb: float


def resident_mb(pid: int) -> float:
    """Return a process's resident memory in MB, with the rest of its parts that memory is shared with counted in."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def lives(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Return a service's samples, those of each of its processes in a list of their own."""
    return [list(group) for _, group in groupby(samples, lambda sample: sample.pid)]


def growth(samples: Sequence[Sample]) -> tuple[float, int] | None:
    """Return by how many MB a service grows a round, and over how many rounds that was seen; None if over too few.

    One slope by least squares through all its lives, each with a level of its own: a service that leaks is not found
    flat because it was killed now and then.
    """
    x, y = [], []
    for life in lives(samples):
        warm = life[WARM_UP:]
        if len(warm) >= FEWEST:
            rounds = np.array([sample.round for sample in warm], float)
            mb = np.array([sample.mb for sample in warm])
            x.append(rounds - rounds.mean())
            y.append(mb - mb.mean())
    if not x:
        return None
    rounds, mb = np.concatenate(x), np.concatenate(y)
    return float(rounds @ mb / (rounds @ rounds)), len(rounds)


def chart(services: Mapping[str, Sequence[Sample]], rounds: int) -> str:
    """Return an SVG file with the memory of each service over the rounds; a line ends where its process did."""
    curves = [
        Curve(name, _kind(name), tuple(tuple((float(s.round), s.mb) for s in life) for life in lives(samples)))
        for name, samples in services.items()
    ]
    top = max(value for curve in curves for value in curve.values)
    plot = round_chart([Band("MB by round", 0, rounds)], curves, axis_over([0.0, top]), title="memory")
    height = PLOT_HEIGHT + 18 * -(-len(COLOURS) // 3)
    legend = []
    for number, kind in enumerate(COLOURS):
        x, y = 44 + 140 * (number % 3), PLOT_HEIGHT + 14 + 18 * (number // 3)
        legend += [circle(f"{x - 8}", f"{y - 4}", "4", f"dot {kind}"), text(f"{x}", f"{y}", kind, "start", "label")]
    style = Markup("<style>{}</style>").format(Markup(_STYLE))
    inner = Markup(str(plot).replace("<svg ", f'<svg height="{PLOT_HEIGHT}" ', 1))
    picture = svg([style, inner, *legend], height, "Memory of each process, MB, by round")
    return str(picture).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def _kind(service: str) -> str:
    return service.rpartition("-")[2]
