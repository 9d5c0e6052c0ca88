"""The command that measures how far honest rounds go tells of each request, and stays within what a site allows."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import study, workers

from server.run import run_study
from simulations.audit.way import Watched


def test_an_honest_run_stays_within_half_of_the_way(pair: Sequence[Path], tmp_path: Path) -> None:
    tiny, seen = study(), []
    run_study(tiny, Watched(workers(tiny, pair), lambda *found: seen.append(found)), tmp_path / "run")
    assert {index for index, *_ in seen} == set(range(5))
    shares = [share for _, _, share, _, _ in seen]
    assert 0 < max(shares) < 0.5
    assert {alike for *_, alike in seen} == {1.0}  # nothing here began with public weights


def test_public_weights_resemble_what_they_were_less_and_less(pair: Sequence[Path], tmp_path: Path) -> None:
    seen: list[tuple[int, str, float, str, float]] = []
    tiny = study(network={"kind": "efficient_unet"})
    run_study(tiny, Watched(workers(tiny, pair), lambda *found: seen.append(found)), tmp_path / "run")
    alike = {index: least for index, _, _, _, least in seen}
    assert alike[0] == pytest.approx(1.0, abs=1e-6)
    assert 0.85 < alike[max(alike)] < alike[1] < 1.0 - 1e-6
