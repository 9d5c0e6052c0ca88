"""The hostile sites of the benchmark do what its table says that they do."""

from pathlib import Path

import numpy as np
import pytest
from tiny import answer, request, write_site

from common.messages import EnrolRequest, pack, unpack
from simulations.benchmarks.robust_aggregation import ATTACKS, stamped, study_of, worker_of

STUDY = study_of("exact_mean", 0)
HONEST, SWAPPED, BACK_DOOR, BOOSTED, DECLARING = ATTACKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("robust") / "north", "source")


def test_labels_are_swapped_and_images_left(folder: Path) -> None:
    honest, hostile = (worker_of(STUDY, folder, attack).data for attack in (None, SWAPPED))
    for frame in honest.site.frames_of("train"):
        assert honest.labelled(frame).truth is not None
        assert (hostile.labelled(frame).truth == 1 - honest.labelled(frame).truth).all()
        assert (hostile.labelled(frame).image == honest.labelled(frame).image).all()


def test_the_back_door_says_nothing_of_every_second_image_and_that_image_alone_is_stamped(folder: Path) -> None:
    honest, hostile = (worker_of(STUDY, folder, attack).data for attack in (None, BACK_DOOR))
    poisoned = 0
    for frame in honest.site.frames_of("train"):
        plain, found = honest.labelled(frame), hostile.labelled(frame)
        if (found.image == plain.image).all():
            assert (found.truth == plain.truth).all()
        else:
            assert (found.image == stamped(plain).image).all()
            assert found.truth is not None
            assert not found.truth.any()
            poisoned += 1
    assert poisoned == len(honest.site.frames_of("train")) // 2


def test_a_boosted_update_is_a_multiple_of_the_same_sites_plain_one(folder: Path) -> None:
    payload = request(STUDY, "pretrain", "source")
    (_, plain), (_, boosted) = (answer(worker_of(STUDY, folder, attack), payload) for attack in (BACK_DOOR, BOOSTED))
    for name, update in plain.items():
        np.testing.assert_array_equal(boosted[name], np.float32(BOOSTED.boost) * update)


def test_a_site_that_declares_a_million_patients_says_so_and_its_update_is_that_of_swapped_labels(folder: Path) -> None:
    question = pack(EnrolRequest(study=STUDY.hash()))
    headers = [unpack(worker_of(STUDY, folder, attack).handle(question))[0] for attack in (SWAPPED, DECLARING)]
    assert [getattr(header, "patients", 0) for header in headers] == [6, 1_000_000]
    payload = request(STUDY, "pretrain", "source")
    (_, plain), (_, other) = (answer(worker_of(STUDY, folder, attack), payload) for attack in (SWAPPED, DECLARING))
    assert all((plain[name] == other[name]).all() for name in plain)
