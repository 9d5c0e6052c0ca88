"""Flower's real simulation engine: the same bits as one process, the server's own errors, nothing left behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from finished import Finished
from processes import processes_of
from tiny import write_site, write_study

from common.errors import RunError
from common.run_folder import RunFolder
from server import history
from simulations.flower import Simulation


@dataclass
class Outcome:
    """What one Simulation did: a whole study, then one that cannot run."""

    run: Path
    polls: int
    error: str
    during: set[int]
    after: set[int]


@pytest.fixture(scope="module")
def outcome(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("flower")
    study = write_study(root / "study.yaml")
    south = write_site(root / "south", "source", seed=2)
    seen: list[set[int]] = []
    with Simulation(cpus=2) as simulation:
        home = simulation.env["FLWR_HOME"]
        simulation.run(study, pair, root / "run", on_poll=lambda: seen.append(processes_of(home)))
        with pytest.raises(RunError) as caught:
            simulation.run(study, [pair[0], south], root / "lacking")
    return Outcome(root / "run", len(seen), str(caught.value), set.union(*seen), processes_of(home))


def test_the_simulation_gives_the_same_bits_as_one_process(outcome: Outcome, finished: Finished) -> None:
    assert RunFolder(outcome.run).model.read_bytes() == RunFolder(finished.run).model.read_bytes()
    records = history.read(outcome.run)
    assert [r.round for r in records] == [r.round for r in history.read(finished.run)]
    assert {site.status for r in records for site in r.sites.values()} == {"ok"}
    assert outcome.polls > 0


def test_a_study_without_one_role_fails_with_the_servers_own_message(outcome: Outcome) -> None:
    assert "study `tiny` needs 1 target site(s), found 0" in outcome.error
    assert "Traceback" not in outcome.error


def test_no_process_of_the_simulation_is_left(outcome: Outcome) -> None:
    assert len(outcome.during) > 3
    assert outcome.after == set()
