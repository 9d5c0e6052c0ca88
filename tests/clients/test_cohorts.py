"""Any two numbers of a site differ by whole cohorts: who comes or goes is never alone in a difference."""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hospital import SECRET, Hospital, Stub, done, hospital, with_policy
from hypothesis import given
from hypothesis import strategies as st
from tiny import answer, request, study, write_site

from clients.data.site import Site, load_site
from clients.governance.approval import approve
from clients.governance.cohorts import Cohort, Cohorts, everyone, grown, whole
from clients.governance.renewal import renew
from clients.governance.state import State
from clients.node.gatekeeper import Gatekeeper
from clients.node.worker import Worker
from common.errors import RunError, SiteStateError
from common.messages import EnrolReply, EnrolRequest, pack
from common.metric import Metric

STUDY, LATER = study(), study(name="later")
PRETRAIN = request(STUDY, "pretrain", "source")
SMALL = {"train": 12, "val": 5, "test": 12}
COHORTS = [("a", "b"), ("c", "d"), ("e", "f", "g")]


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A source site with twelve patients to train on, and twelve to test on."""
    folder = write_site(tmp_path_factory.mktemp("cohorts") / "north", "source", patients={**SMALL, "calibrate": 5})
    return with_policy(load_site(folder))


def without(site: Site, *patients: str) -> Site:
    assert set(patients) <= {frame.patient for frame in site.frames}
    return replace(site, frames=tuple(frame for frame in site.frames if frame.patient not in patients))


def counted(cohorts: list[Cohort], present: str, least: int) -> str:
    return "".join(sorted(patient for cohort in whole(cohorts, present, least) for patient in cohort))


def test_the_first_time_all_are_sorted_in_a_row_and_all_count() -> None:
    assert grown([], "abcdefg", 2) == COHORTS
    assert grown([], "abc", 4) == []
    assert grown([], "abcd", 4) == [("a", "b", "c", "d")]


def test_who_leaves_takes_his_cohort_along_until_he_is_back() -> None:
    assert counted(COHORTS, "abcefg", 2) == "abefg"
    assert grown(COHORTS, "abcdefg", 2) == COHORTS
    back = grown(grown(COHORTS, "abcefg", 2), "abcdefg", 2)
    assert sorted(back) == COHORTS
    assert counted(back, "abcdefg", 2) == "abcdefg"


def test_who_comes_waits_for_enough_others_and_joins_no_cohort_that_is_there() -> None:
    assert grown(COHORTS, "abcdefgh", 2) == COHORTS
    assert grown(COHORTS, "abcdefghi", 2) == [*COHORTS, ("h", "i")]
    assert sorted(grown(COHORTS, "abcefghi", 2)) == [*COHORTS, ("h", "i")]  # c waits for d, not for h


def test_a_larger_floor_joins_cohorts_and_a_smaller_one_later_parts_none() -> None:
    joined = grown(COHORTS, "abcdefg", 4)
    assert joined == [("a", "b", "c", "d", "e", "f", "g")]
    assert grown(joined, "abcdefg", 2) == joined
    left = grown(COHORTS, "abcefg", 4)  # the one whose patient left is not there to be joined
    assert sorted(left) == [("a", "b", "e", "f", "g"), ("c", "d")]
    assert counted(left, "abcefg", 4) == "abefg"


def test_a_number_over_some_of_many_keeps_to_those_it_began_with() -> None:
    first = grown([], "abcdefghij", 2, 4)
    assert counted(first, "abcdefghij", 2) == "".join(everyone("train", "abcdefghij", 4))
    assert grown(first, "abcdefghijk", 2, 4) == first  # there is no room
    gone = first[0][0]
    left = "abcdefghij".replace(gone, "")
    second = grown(first, left, 2, 4)
    assert len(counted(second, left, 2)) == 4
    assert not set(first[0]) & set(counted(second, left, 2))


Moments = st.lists(st.tuples(st.sets(st.integers(0, 30)), st.integers(1, 6)), min_size=2, max_size=8)


@given(moments=Moments, most=st.sampled_from([None, 3, 8, 16]))
def test_whatever_comes_and_goes_no_numbers_together_single_out_fewer_than_the_floor(
    moments: list[tuple[set[int], int]], most: int | None
) -> None:
    """The attacker may add and subtract all sums that ever left: what he can part is who was in the same ones."""
    cohorts: list[Cohort] = []
    seen: list[set[str]] = []
    for number, (patients, least) in enumerate(moments):
        present = sorted(f"p{patient:02}" for patient in patients)
        cohorts = grown(cohorts, present, least, most)
        counting = {patient for cohort in whole(cohorts, present, least) for patient in cohort}
        assert counting <= set(present)
        if not number and most is None:
            assert counting == (set(present) if len(present) >= least else set())
        seen.append(counting)
    parts = Counter(tuple(p in counting for counting in seen) for p in set().union(*seen))
    assert all(size >= min(least for _, least in moments) for size in parts.values())


def test_the_first_numbers_of_a_hospital_are_those_of_a_simulated_site_and_a_patient_who_leaves_is_not_told(
    twelve: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Metric, "rounded", lambda self, value: value)
    north = hospital(tmp_path / "state", twelve, STUDY, LATER)
    first = done(north.answer(PRETRAIN)).metrics
    assert first == answer(Worker(twelve, STUDY, SECRET), PRETRAIN)[0].metrics
    left = north.reopened(without(twelve, "kept-north-train-0"))
    found = done(left.answer(request(LATER, "pretrain", "source"))).metrics["foreground_fraction"]
    cohort = [f"kept-north-train-{number}" for number in (0, 1, 10, 11, 2)]  # as they stand in a row
    others = hospital(tmp_path / "others", without(twelve, *cohort), LATER)
    assert found == done(others.answer(request(LATER, "pretrain", "source"))).metrics["foreground_fraction"]
    assert found != first["foreground_fraction"]


def test_who_counts_is_the_same_after_a_restart_in_another_study_and_after_the_study_began_again(
    twelve: Site, tmp_path: Path, stub: Stub
) -> None:
    seen: list[list[str]] = []
    stub.during = lambda context: seen.append(list(context.data.counted("train")))
    fewer = without(twelve, "kept-north-train-3", "kept-north-train-7")
    north = hospital(tmp_path / "state", fewer, STUDY, LATER)
    assert north.code(PRETRAIN) == "ok"
    assert seen == [fewer.patients("train")]
    north = north.reopened(twelve)  # two came, who wait
    assert north.code(request(LATER, "pretrain", "source")) == "ok"
    north.state.start_over(STUDY.hash())
    assert north.code(PRETRAIN) == "ok"
    assert seen[1:] == [fewer.patients("train")] * 2
    assert not set(twelve.patients("train")) <= set(seen[-1])


def test_a_patient_of_another_name_or_split_is_a_new_one(twelve: Site, tmp_path: Path) -> None:
    state = State.create(tmp_path / "state")
    cohorts = Cohorts(state, "north", 5)
    everybody = twelve.patients("test")
    assert cohorts.counted("test", everybody, None) == everybody
    renamed = sorted([*everybody[1:], "renamed"])
    assert len(cohorts.counted("test", renamed, None)) == 7  # of five and seven
    assert cohorts.counted("train", [*everybody[:4], "other"], None) == sorted([*everybody[:4], "other"])
    assert Cohorts(state, "north", 5).counted("test", everybody, None) == everybody


def test_with_no_whole_cohort_no_number_leaves_and_the_site_trains_all_the_same(tmp_path: Path) -> None:
    later = study(name="later", batch_size=8)
    folder = write_site(tmp_path / "north", "source", patients={"train": 8, "calibrate": 5, "val": 5, "test": 5})
    north = hospital(tmp_path / "state", with_policy(load_site(folder)), STUDY, later)
    assert {"loss", "foreground_fraction"} <= done(north.answer(PRETRAIN)).metrics.keys()
    assert evaluates(north)
    left = north.reopened(without(north.site, "kept-north-train-0", "kept-north-test-0", "kept-north-val-0"))
    for stage, kept in (("pretrain", "foreground_fraction"), ("refine", "val_dice")):
        found = done(left.answer(request(later, stage, "source"))).metrics
        assert "loss" in found
        assert kept not in found
    assert not evaluates(left)


def test_a_target_of_which_nobody_counts_trains_with_its_threshold_and_sends_no_score(tmp_path: Path) -> None:
    east = with_policy(load_site(write_site(tmp_path / "east", "target")))
    asked = [request(of, "refine", "target") for of in (STUDY, LATER)]
    known = hospital(tmp_path / "state", east, STUDY, LATER)
    assert "score" in done(known.answer(asked[0])).metrics
    found = done(known.reopened(without(east, "kept-east-train-0")).answer(asked[1])).metrics
    assert found.keys() == {"loss", "confidence", "pseudo_foreground_fraction"}


def evaluates(own: Hospital) -> bool:
    header = own.answer(pack(EnrolRequest(study=STUDY.hash())))
    assert isinstance(header, EnrolReply)
    return header.labelled_test


def test_the_file_names_nobody_is_closed_to_others_and_the_log_has_a_count_alone(
    twelve: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = State.create(tmp_path / "state")
    Cohorts(state, "north", 5).counted("train", twelve.patients("train"), None)
    assert state.cohorts.stat().st_mode & 0o777 == 0o600
    assert b"kept" not in state.cohorts.read_bytes()
    other = State.create(tmp_path / "other")
    Cohorts(other, "north", 5).counted("train", twelve.patients("train"), None)
    assert other.cohorts.read_bytes() != state.cohorts.read_bytes()  # the hashes have the site's own key
    left = without(twelve, "kept-north-train-0").patients("train")
    with caplog.at_level(logging.WARNING, "crossprobe.worker"):
        again = Cohorts(state, "north", 5)
        for _ in range(2):
            again.counted("train", left, None)
    (line,) = caplog.messages
    assert "4 patients (train) are in no number now" in line
    assert "kept" not in line


@pytest.mark.parametrize("content", [b"", b"{}\n", b'{"train": [["a"]]}', b"\xff\n", None])
def test_a_file_that_was_damaged_or_taken_away_stops_the_worker_with_what_to_do(
    content: bytes | None, twelve: Site, tmp_path: Path, stub: Stub
) -> None:
    stub.during = lambda context: context.data.counted("train") and None
    north = hospital(tmp_path / "state", twelve, STUDY)
    assert north.code(PRETRAIN) == "ok"
    whole_file = north.state.cohorts.read_bytes()
    if content is None:
        north.state.cohorts.unlink()
    else:
        north.state.cohorts.write_bytes(content or whole_file[:-1])
    with pytest.raises(SiteStateError, match=r"(?s)cohorts .*latest backup.*privacy officer.*ledger renew"):
        Gatekeeper(twelve, north.state)
    north.state.cohorts.unlink(missing_ok=True)
    renew(north.state)  # what the privacy officer may decide
    assert north.reopened().code(PRETRAIN) == "ok"


def test_who_counts_is_on_the_disk_before_a_number_leaves(
    twelve: Site, tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.during = lambda context: context.data.counted("train") and None
    north = hospital(tmp_path / "state", twelve, STUDY)

    def fail(path: Path, *_: object, **__: object) -> None:
        raise RunError(f"cannot write {path}: no space")

    with monkeypatch.context() as patch:
        patch.setattr("clients.governance.state.write_atomically", fail)
        assert north.code(PRETRAIN) == "state-failed"
    assert not north.state.cohorts.exists()
    assert north.code(PRETRAIN) == "ok"
    assert north.ledger()[-1]["cohorts"] == 12


def test_a_policy_with_a_larger_floor_joins_a_hospitals_cohorts(twelve: Site, tmp_path: Path, stub: Stub) -> None:
    seen: list[int] = []
    stub.during = lambda context: seen.append(len(context.data.counted("train")))
    north = hospital(tmp_path / "state", twelve, STUDY, LATER)
    assert north.code(PRETRAIN) == "ok"
    for site, count in ((twelve, 12), (without(twelve, "kept-north-train-0"), 0)):
        strict = with_policy(site, min_patients=6)
        approve(north.state, strict, LATER, by="anna")
        north.state.start_over(LATER.hash())
        assert north.reopened(strict).code(request(LATER, "pretrain", "source")) == "ok"
        assert seen[-1] == count
