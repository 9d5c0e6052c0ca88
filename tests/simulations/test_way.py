"""The command that measures how far honest rounds go tells of each request, and stays within what a site allows."""

from collections.abc import Sequence
from pathlib import Path

from tiny import study, workers

from server.run import run_study
from simulations.audit.way import Watched


def test_an_honest_run_stays_within_half_of_the_way(pair: Sequence[Path], tmp_path: Path) -> None:
    tiny, seen = study(), []
    run_study(tiny, Watched(workers(tiny, pair), lambda *found: seen.append(found)), tmp_path / "run")
    assert {index for index, *_ in seen} == set(range(5))
    shares = [share for _, _, share, _ in seen]
    assert 0 < max(shares) < 0.5
