"""A round each under delay, loss, a narrow line, doubled and early packets, then all at once. `make network-test`."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from networked import NetworkedFederation, five_rounds, missing
from tiny import write_study
from wire import Weather

from common.run_folder import RunFolder

pytestmark = [pytest.mark.network, pytest.mark.skipif(bool(missing()), reason=missing())]

#: Weather of the study's rounds: pretrain, refine four times, score, evaluate.
WEATHER = {
    0: Weather(delay_s=0.3),
    1: Weather(loss=0.05),
    2: Weather(bits_per_s=1e6),
    3: Weather(delay_s=0.02, duplicate=0.05, reorder=0.25),
    4: Weather(delay_s=0.3, loss=0.05, duplicate=0.02, reorder=0.1, bits_per_s=1e6),
}
ROUNDS = 7
#: What all of it may take, with a run's start.
PATIENCE_S = 900.0


@dataclass
class Outcome:
    """What was left of the run, and what the wires did in each round, both ways and both sites together."""

    federation: NetworkedFederation
    code: int
    counts: dict[int, Counter[str]]


@pytest.fixture(scope="module")
def outcome(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    root = tmp_path_factory.mktemp("weather")
    with NetworkedFederation(root, write_study(root / "study.yaml", stages=five_rounds()), pair) as federation:
        federation.start_coordinator()
        federation.register()
        federation.start_sites()
        counts: dict[int, Counter[str]] = {}
        until, index = time.monotonic() + PATIENCE_S, -1
        with federation.running() as running:
            while running.poll() is None and time.monotonic() < until:
                federation.tend()
                if index != len(federation.records()) and RunFolder(federation.run_folder).nodes.exists():
                    index = len(federation.records())
                    counts[index] = _count(federation)
                    for wire in federation.wires.values():
                        wire.weather = WEATHER.get(index, Weather())
                time.sleep(0.1)
            counts[index + 1] = _count(federation)
            assert running.poll() is not None, f"{federation.said.read_text()}\n{federation.logs()}"
        passed = {index: counts[index + 1] - counts[index] for index in WEATHER}
        yield Outcome(federation, running.returncode, passed)


def _count(federation: NetworkedFederation) -> Counter[str]:
    return sum((way.count for wire in federation.wires.values() for way in (wire.out, wire.into)), Counter())


def test_the_run_ends_with_the_bits_of_an_undisturbed_one(outcome: Outcome, tmp_path: Path) -> None:
    assert outcome.code == 0
    assert [record.round for record in outcome.federation.records() if record.counted] == list(range(ROUNDS))
    model = RunFolder(outcome.federation.run_folder).model.read_bytes()
    assert model == outcome.federation.undisturbed(tmp_path)


def test_every_site_is_in_every_round(outcome: Outcome) -> None:
    statuses = {
        (record.round, name): site.status
        for record in outcome.federation.records()
        for name, site in record.sites.items()
    }
    assert {key: status for key, status in statuses.items() if status != "ok"} == {}


@pytest.mark.parametrize(
    ("index", "what"), [(1, "lost"), (3, "twice"), (3, "early"), (4, "lost"), (4, "twice"), (4, "early")]
)
def test_the_wires_did_it(index: int, what: str, outcome: Outcome) -> None:
    count = outcome.counts[index]
    name = {"lost": "loss", "twice": "duplicate", "early": "reorder"}[what]
    share = getattr(WEATHER[index], name)
    packets = count["packets"]
    assert packets > 100
    chance = math.sqrt(packets * share * (1 - share))
    assert 0 < count[what] == pytest.approx(packets * share, abs=4 * chance)
