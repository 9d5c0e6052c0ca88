"""Updates of 16 bits: what is sent fits them, and what rounding takes is sent later."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from common.messages import Message, TaskReply
from simulations.benchmarks.short_updates import MOST, ShortTransport, shortened


def test_a_short_update_is_16_bit_integers_times_a_power_of_two() -> None:
    update = np.random.default_rng(0).normal(0, 0.01, 1000).astype(np.float32)

    sent = shortened(update)

    step = 2.0 ** np.ceil(np.log2(np.abs(update).max() / MOST))
    integers = sent / step
    assert (integers == np.rint(integers)).all()
    assert np.abs(integers).max() <= MOST
    assert 0 < np.abs(sent - update).max() <= step / 2
    assert (shortened(np.zeros(3, np.float32)) == 0).all()


def worker_of(update: np.ndarray) -> Any:
    """A worker, as much of it as a transport sees, that sends the same update each time."""
    header = TaskReply(study="0" * 64, round=0, stage="s", task="supervise", request="0" * 64, metrics={})
    payload = Message.of(header, {"w": update}).payload
    site = SimpleNamespace(config=SimpleNamespace(name="north"))
    return SimpleNamespace(site=site, handle=lambda _: payload)


def test_over_rounds_the_sum_of_what_is_sent_is_that_of_the_updates() -> None:
    update = np.random.default_rng(1).normal(0, 1, 100).astype(np.float32)
    transport, total = ShortTransport([worker_of(update)], short=True), np.zeros(100)
    requests: Mapping[str, bytes] = {"north": b""}

    for _ in range(50):
        for _, payload in transport.exchange(requests, lambda _: "supervise", 1.0):
            assert isinstance(payload, bytes)
            total += Message.parse(payload).tensors["w"]

    step = 2.0 ** np.ceil(np.log2(np.abs(update).max() / MOST))
    without_feedback = np.abs(50 * (shortened(update) - update)).max()
    assert np.abs(total - 50.0 * update).max() <= 2 * step < without_feedback
    assert transport.values == 50 * 100
