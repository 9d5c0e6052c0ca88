"""A federation whose targets' updates are summed under masks: real processes, the plain model, and nobody's update."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from federation import Federation
from tiny import content, workers, write_site, write_study

from clients.governance.ledger import read as read_ledger
from common.run_folder import RunFolder
from common.study import load_study
from server import history
from server.run import run_study
from simulations.local import LocalTransport

pytestmark = pytest.mark.federation
TARGETS = ("east", "west", "mid")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    root = tmp_path_factory.mktemp("sites")
    targets = [write_site(root / name, "target", seed=seed, gain=0.7) for seed, name in enumerate(TARGETS)]
    return [write_site(root / "north", "source", seed=7), *targets]


@pytest.fixture(scope="module")
def ran(sites: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    root = tmp_path_factory.mktemp("masks")
    stages = [stage | {"rounds": 1} for stage in content()["stages"] if stage["name"] in ("pretrain", "refine")]
    quorum = {"quorum": {"source": 1, "target": 3}}
    study = write_study(root / "study.yaml", stages=stages, participation=quorum, secure_aggregation=["target"])
    with Federation(root, study, sites) as federation:
        federation.start_coordinator()
        federation.register()
        federation.start_sites()
        run = federation.run()
        assert run.returncode == 0, f"{run.stdout}\n{run.stderr}\n{federation.logs()}"
        yield federation


def test_the_model_is_that_of_the_plain_sum_in_one_process(
    ran: Federation, sites: Sequence[Path], tmp_path: Path
) -> None:
    plain = load_study(ran.study).model_copy(update={"secure_aggregation": ()})
    run_study(plain, LocalTransport(workers(plain, sites)), tmp_path)
    assert RunFolder(ran.run_folder).model.read_bytes() == RunFolder(tmp_path).model.read_bytes()


def test_each_target_answered_twice_a_round_and_its_update_left_as_integers_under_a_mask(ran: Federation) -> None:
    records = history.read(ran.run_folder)
    assert {site.status for record in records for site in record.sites.values()} == {"ok"}
    for name in TARGETS:
        sent = [line for line in read_ledger(ran.kits / name / "state" / "ledger.jsonl") if line["direction"] == "out"]
        kinds = [line["kind"] for line in sent]
        assert kinds == ["enrolled", "done", "unmasked", "done", "unmasked", "done", "done"]
    kinds = [line["kind"] for line in read_ledger(ran.kits / "north" / "state" / "ledger.jsonl")]
    assert "unmasked" not in kinds


def test_the_settled_sites_are_all_three(ran: Federation) -> None:
    kept = json.loads((ran.run_folder / "survivors.json").read_text())
    assert sorted(kept["target"][1]) == sorted(TARGETS)
