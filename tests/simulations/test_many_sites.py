"""Many simulated sites in one process: what they share, and what each round costs memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tiny import refusal, request, write_study

from clients.node import simulated
from clients.node.simulated import cached_worker, open_worker
from common.messages import TaskReply, unpack
from common.study import load_study


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    cached_worker.cache_clear()
    yield
    cached_worker.cache_clear()


def test_workers_that_share_networks_answer_as_if_each_were_alone(four: Sequence[Path], tmp_path: Path) -> None:
    file = write_study(tmp_path / "study.yaml")
    study = load_study(file)
    shared = [cached_worker(str(file), str(folder)) for folder in four]
    assert len({id(worker.networks) for worker in shared}) == 1
    for stage in ("pretrain", "refine"):
        for worker, folder in zip(shared, four, strict=True):
            asked = request(study, stage, worker.site.config.role)
            assert worker.handle(asked) == open_worker(study, folder).handle(asked)


def test_a_process_keeps_the_images_of_a_few_sites_at_most(
    four: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cached_worker.cache_info().maxsize == simulated.KEPT_SITES
    file = str(write_study(tmp_path / "study.yaml"))
    for folder in [str(four[0])] + [f"{four[0]}/{'./' * n}" for n in range(simulated.KEPT_SITES + 5)]:
        cached_worker(file, folder)
    assert cached_worker.cache_info().currsize == simulated.KEPT_SITES


def test_weights_that_no_training_makes_are_refused_by_every_site_also_after_others_passed(
    four: Sequence[Path], tmp_path: Path
) -> None:
    file = write_study(tmp_path / "study.yaml")
    study = load_study(file)
    north, south = (cached_worker(str(file), str(folder)) for folder in (four[0], four[2]))
    good = request(study, "pretrain", "source")
    crafted = request(study, "pretrain", "source", {k: 1000 * x for k, x in unpack(good)[1].items()})
    for _ in range(2):
        assert isinstance(unpack(north.handle(good))[0], TaskReply)
        assert refusal(north.handle(crafted)).code == "implausible-weights"
        assert isinstance(unpack(south.handle(good))[0], TaskReply)
        assert refusal(south.handle(crafted)).code == "implausible-weights"
