"""Flower's SecAgg+ as it is measured beside ours really sums, also without sites that agreed on keys."""

import numpy as np
import pytest

from simulations.benchmarks.flower_secagg import measure


@pytest.mark.parametrize("missing", [0, 1])
def test_its_mean_is_the_plain_one_to_its_own_rounding(missing: int) -> None:
    rng = np.random.default_rng(0)
    updates = [rng.normal(0, 0.01, 60).astype(np.float32) for _ in range(5)]
    found = measure(updates, missing, threshold=4, patients=40)
    assert 0 < found.error < 1e-4
    assert found.bytes_update > 60 * 8
