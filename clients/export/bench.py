"""Frames a second and latencies of an exported model beside torch: one frame of each in turn, so that a busy machine
slows all of them alike, and their ratio can be trusted where the seconds cannot."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clients.export.export import Segmenter, as_predict, graph_of, in_torch, segmenter
from clients.export.pictures import speckle
from clients.released import load_model

#: What a live view shows, and the side of its frames in pixels.
LIVE_FRAMES_PER_S, SIDE_PX = 30, 256
THREADS, WARM_UP = 2, 3


@dataclass(frozen=True)
class Timing:
    """How long one way to segment a frame takes.

    Attributes:
        frames_per_s: by the median.
        times_predict: how many times as fast as `crossprobe predict`, by the medians of the same minutes.
    """

    way: str
    frames_per_s: float
    times_predict: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def bench(folder: Path, model: Path, small: Path | None, *, flips: bool, frames: int) -> list[Timing]:
    """Time an exported model, and `small` in 8 bits, beside torch, frame after frame of 256 x 256 on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        ways = _ways(folder, model, small, flips=flips)
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(WARM_UP + frames):
            image = speckle(SIDE_PX, SIDE_PX, seed=turn)
            for way, segment in ways.items():
                begin = time.perf_counter()
                segment(image)
                spent[way].append((time.perf_counter() - begin) * 1e3)
    finally:
        torch.set_num_threads(threads)
    of_predict = float(np.median(spent[next(iter(ways))][WARM_UP:]))
    return [_timing(way, np.array(found[WARM_UP:]), of_predict) for way, found in spent.items()]


def _ways(folder: Path, model: Path, small: Path | None, *, flips: bool) -> dict[str, Segmenter]:
    trained = load_model(folder)
    ways = {
        "torch, as predict (tiles)": as_predict(trained),
        "torch, whole": in_torch(graph_of(trained, flips=flips)),
        "onnxruntime float32": segmenter(model, THREADS),
    }
    return ways if small is None else ways | {"onnxruntime int8": segmenter(small, THREADS)}


def _timing(way: str, ms: np.ndarray, of_predict: float) -> Timing:
    p50, p95, p99 = (round(float(np.percentile(ms, share)), 2) for share in (50, 95, 99))
    return Timing(way, round(1e3 / p50, 2), round(of_predict / p50, 2), p50, p95, p99)
