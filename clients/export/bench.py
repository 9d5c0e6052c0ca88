"""Frames a second and latencies of an exported model beside torch: one frame of each in turn, so that a busy machine
slows all of them alike, and their ratio can be trusted where the seconds cannot."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clients.export.export import Segmenter, as_predict, graph_of, in_torch, segmenter
from clients.export.pictures import speckle
from clients.released import Model

#: What a live view shows, and the side of its frames in pixels.
LIVE_FRAMES_PER_S, SIDE_PX = 30, 256
WARM_UP = 3
#: `predict` takes seconds a frame, so it has its turn less often.
PREDICT_EVERY = 5


@dataclass(frozen=True)
class Timing:
    """How long one way to segment a frame takes.

    Attributes:
        frames_per_s: by the median.
        times_predict: how many times as fast as `crossprobe predict`, by the medians of the same minutes.
        cpu_ms: what all threads of the process computed for a frame, the median: a busy machine changes it far less.
    """

    way: str
    frames_per_s: float
    times_predict: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float


def bench(
    model: Model,
    exported: Path,
    small: Path | None,
    *,
    flips: bool,
    frames: int,
    threads: int = 2,
) -> list[Timing]:
    """Time a model as it was exported, and `small` in 8 bits, beside torch, frame after frame of 256 x 256."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ways = _ways(model, exported, small, flips=flips, threads=threads)
        spent: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for turn in range(-WARM_UP, frames):
            image = speckle(SIDE_PX, SIDE_PX, seed=turn + WARM_UP)
            for number, (way, segment) in enumerate(ways.items()):
                if number == 0 and turn % PREDICT_EVERY:
                    continue
                begin, computed = time.perf_counter(), time.process_time()
                segment(image)
                if turn >= 0:
                    spent[way].append((time.perf_counter() - begin, time.process_time() - computed))
    finally:
        torch.set_num_threads(before)
    found = {way: 1e3 * np.array(pairs) for way, pairs in spent.items()}
    of_predict = float(np.median(found[next(iter(ways))][:, 0]))
    return [_timing(way, pairs, of_predict) for way, pairs in found.items()]


def _ways(model: Model, exported: Path, small: Path | None, *, flips: bool, threads: int) -> dict[str, Segmenter]:
    ways = {
        "torch, as predict (tiles)": as_predict(model),
        "torch, whole": in_torch(graph_of(model, flips=flips)),
        "onnxruntime float32": segmenter(exported, threads),
    }
    return ways if small is None else ways | {"onnxruntime int8": segmenter(small, threads)}


def _timing(way: str, pairs: np.ndarray, of_predict: float) -> Timing:
    p50, p95, p99 = (round(float(np.percentile(pairs[:, 0], share)), 2) for share in (50, 95, 99))
    cpu = round(float(np.median(pairs[:, 1])), 2)
    return Timing(way, round(1e3 / p50, 2), round(of_predict / p50, 2), p50, p95, p99, cpu)
