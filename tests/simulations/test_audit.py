"""The audit's attacks work where nothing stops them: without that, a table of failed attacks would say nothing."""

from pathlib import Path

import pytest
from hospital import with_policy
from tiny import write_site

from clients.node.simulated import open_worker
from clients.node.worker import Worker
from common.study import Study
from simulations.audit.ask import hostile_study
from simulations.audit.trap import reconstruct

PRIVACY = {"nominal_patients": 6, "noise_multiplier": 1.0, "delta": 1e-3, "epsilon_cap": 1e6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("audit") / "east", "target")


def opened(study: Study, folder: Path) -> Worker:
    """A site whose policy lets every attack through; what the defaults refuse is in test_plausibility."""
    worker = open_worker(study, folder)
    open_ = {"max_mask_ratio": 1.0, "max_mask_side": 1.0, "max_learning_rate": 1.0, "implausible_weights": "report"}
    return Worker(with_policy(worker.site, **open_), study, worker.secret)


def test_one_reply_of_one_patient_is_that_patients_image(folder: Path) -> None:
    study = hostile_study("self_supervise", rounds=3)
    for match in reconstruct(opened(study, folder), study, rounds=3):
        assert match.correlation > 0.9
        assert match.correlation > match.other + 0.05


def test_noise_hides_the_image_even_where_one_patient_is_drawn(folder: Path) -> None:
    study = hostile_study("self_supervise", rounds=3, privacy=PRIVACY)
    assert max(match.correlation for match in reconstruct(opened(study, folder), study, rounds=3)) < 0.5
