"""One thread, repeatable properties, and tiny sites with one finished run that tests share."""

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from finished import Finished
from hospital import Hospital, Stub, hospital
from hypothesis import HealthCheck, settings
from tiny import Between, distilling, one_stage, repeated, study, workers, write_site

from clients.data.site import Site, load_site
from common.components import BRANCHES, Tensors
from server.run import run_study

# A shell that starts the tests in the background has them ignore Ctrl-C, and so do all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """The folders of `north` (source) and `east` (target). Not to be changed."""
    root = tmp_path_factory.mktemp("pair")
    return (write_site(root / "north", "source"), write_site(root / "east", "target", seed=1, gain=0.7))


@pytest.fixture(scope="session")
def four(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """`pair` with a second site of each role, `south` and `west`. Not to be changed."""
    root = tmp_path_factory.mktemp("four")
    south = write_site(root / "south", "source", seed=2, patients={"train": 9, "calibrate": 5, "val": 5, "test": 5})
    return (*pair, south, write_site(root / "west", "target", seed=3, gain=0.8))


@pytest.fixture(scope="session")
def finished(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    tiny = study()
    transport = Between(workers(tiny, pair))
    run = tmp_path_factory.mktemp("finished") / "run"
    return Finished(tiny, run, transport, run_study(tiny, transport, run))


@pytest.fixture(scope="session")
def distilled(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`finished` with a student: every task there is."""
    tiny = distilling()
    transport = Between(workers(tiny, pair))
    run = tmp_path_factory.mktemp("distilled") / "run"
    return Finished(tiny, run, transport, run_study(tiny, transport, run))


@pytest.fixture(scope="session")
def trained(pair: Sequence[Path]) -> Tensors:
    """Both branches after some supervised steps: a model that finds the band at `north`."""
    of = one_stage(source={"task": "supervise", "trains": BRANCHES, "steps": 8})
    (north,) = workers(of, pair[:1])
    return repeated(of, north, {}, times=3)[0]


@pytest.fixture(scope="module")
def site(pair: Sequence[Path]) -> Site:
    return load_site(pair[0])


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    return Stub().install(monkeypatch)


@pytest.fixture
def north(tmp_path: Path, site: Site) -> Hospital:
    return hospital(tmp_path / "state", site, study())
