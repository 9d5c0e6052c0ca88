"""The worker: every request is answered, and what is not agreed is refused with a code and nothing else."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from finished import Finished
from hospital import Stub, with_policy
from hypothesis import given
from hypothesis import strategies as st
from tiny import answer, enrolled, one_stage, refusal, request, round_of, study, workers, write_site

from clients.data.site import load_site
from clients.learning.training import TaskContext
from clients.node.worker import Worker
from common.components import BRANCHES, Tensors
from common.messages import EnrolReply, EnrolRequest, Message, TaskReply, TaskRequest, pack, unpack
from common.metrics import FrameMeasures
from common.stage import Round
from common.study import Study

STUDY = study()


@pytest.fixture(scope="module")
def north(pair: Sequence[Path]) -> Worker:
    return workers(STUDY, pair[:1])[0]


@pytest.fixture(scope="module")
def east(pair: Sequence[Path]) -> Worker:
    return workers(STUDY, pair[1:])[0]


PRETRAIN = request(STUDY, "pretrain", "source")


def changed(**fields: object) -> bytes:
    """The request of the first round with other fields in its header."""
    header, tensors = unpack(PRETRAIN)
    return pack(TaskRequest.model_validate(header.model_dump() | fields), tensors)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", "not-a-message"),
        (b"\0" * 100, "not-a-message"),
        (PRETRAIN[:-1], "bad-tensors"),
        (changed(study="0" * 64), "other-study"),
        (pack(EnrolRequest(study="0" * 64)), "other-study"),
        (changed(round=7), "unknown-round"),
        (changed(round=10**30), "unknown-round"),
        (changed(round=1), "other-task"),
        (changed(stage="adapt"), "other-task"),
        (changed(task="evaluate"), "other-task"),
        (request(STUDY, "pretrain", "target"), "other-task"),
        (request(STUDY, "refine", "target"), "other-task"),
        (pack(TaskReply(study="0" * 64, round=0, stage="x", task="score", request="0" * 64, metrics={})), None),
        (pack(enrolled()), None),
    ],
)
def test_a_request_outside_the_study_is_refused(payload: bytes, code: str | None, north: Worker) -> None:
    assert refusal(north.handle(payload)).code == (code or "not-a-request")


def spoilt(**changes: np.ndarray | None) -> bytes:
    """The first round's request with tensors replaced, added, or (None) removed."""
    header, tensors = unpack(PRETRAIN)
    tensors |= {name: x for name, x in changes.items() if x is not None}
    return pack(header, {name: x for name, x in tensors.items() if changes.get(name, x) is not None})


BIAS = "source_branch.decoder/final_conv.bias"


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (pack(unpack(PRETRAIN)[0]), "missing-tensor"),
        (spoilt(**{BIAS: None}), "missing-tensor"),
        (spoilt(**{"target_branch.decoder/final_conv.bias": np.zeros(1, np.float32)}), "unknown-tensor"),
        (spoilt(**{BIAS: np.zeros(1)}), "wrong-dtype"),
        (spoilt(**{BIAS: np.zeros((1, 1), np.float32)}), "wrong-shape"),
        (spoilt(**{BIAS: np.array([np.nan], np.float32)}), "not-finite"),
        (spoilt(**{BIAS: np.array([np.inf], np.float32)}), "not-finite"),
        (spoilt(**{BIAS: np.array([2e5], np.float32)}), "absurd-norm"),
    ],
)
def test_a_request_with_other_tensors_is_refused(payload: bytes, code: str, north: Worker) -> None:
    assert refusal(north.handle(payload)).code == code


def test_a_refused_request_leaves_no_trace_in_the_next_reply(north: Worker) -> None:
    before = north.handle(PRETRAIN)
    refusal(north.handle(spoilt(**{BIAS: np.array([np.nan], np.float32)})))
    assert north.handle(PRETRAIN) == before


@given(st.binary(max_size=200), st.integers(0, len(PRETRAIN)))
def test_any_bytes_are_answered_with_a_refusal(north: Worker, more: bytes, kept: int) -> None:
    refusal(north.handle(more))
    refusal(north.handle(PRETRAIN[: min(kept, len(PRETRAIN) - 1)]))
    refusal(north.handle(PRETRAIN + more + b"."))


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyError, MemoryError, AssertionError, RecursionError])
def test_an_error_inside_never_travels_as_text(
    error: type[Exception], north: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise error("/data/ward/anna-schmidt.png")

    monkeypatch.setattr("clients.node.worker.perform", broken)
    reply = north.handle(PRETRAIN)
    assert refusal(reply).code == "task-failed"
    assert b"anna" not in reply


def test_a_caller_that_is_gone_stops_the_task(north: Worker) -> None:
    asked = []

    def cancelled() -> bool:
        asked.append(True)
        return len(asked) > 1

    refusal(north.answer(Message.parse(PRETRAIN), cancelled).payload)
    assert len(asked) == 2
    answer(north, PRETRAIN)


def test_images_without_spacing_are_refused_where_the_study_needs_it(pair: Sequence[Path]) -> None:
    of = study(image={"size": 32, "spacing_mm": 0.5})
    (worker,) = workers(of, pair[:1])
    assert refusal(worker.handle(request(of, "pretrain", "source"))).code == "site-error"


def test_an_update_beyond_the_agreed_norm_does_not_leave(pair: Sequence[Path]) -> None:
    of = study(participation={"max_norm": 1e-3})
    (worker,) = workers(of, pair[:1])
    assert refusal(worker.handle(request(of, "pretrain", "source"))).code == "absurd-norm"


def test_a_number_outside_its_range_does_not_leave(pair: Sequence[Path], stub: Stub) -> None:
    (worker,) = workers(study(), pair[:1])
    stub.metrics = {"foreground_fraction": 5.0}
    assert refusal(worker.handle(request(study(), "pretrain", "source"))).code == "out-of-range"


def test_every_reply_can_be_repeated_bit_by_bit_whatever_was_asked_before(
    finished: Finished, pair: Sequence[Path]
) -> None:
    fresh = {worker.site.config.name: worker for worker in workers(STUDY, pair)}
    for sent, received in reversed(list(zip(finished.transport.sent, finished.transport.received, strict=True))):
        for site, payload in sent.items():
            assert fresh[site].handle(payload) == received[site]


@pytest.mark.parametrize(("stage", "role"), [("pretrain", "source"), ("pretrain", "target"), ("refine", "target")])
def test_the_secret_decides_the_randomness(stage: str, role: str, north: Worker, east: Worker) -> None:
    known = north if role == "source" else east
    payload = request(STUDY, stage, role)
    other = Worker(known.site, STUDY, bytes(32))
    assert known.handle(payload) == Worker(known.site, STUDY, known.secret).handle(payload)
    assert unpack(known.handle(payload))[1].keys() == unpack(other.handle(payload))[1].keys()
    assert known.handle(payload) != other.handle(payload)
    assert known.secret not in known.handle(payload)


def context_of(worker: Worker, of: Study, round_: Round) -> TaskContext:
    task = round_.stage.task_of(worker.site.config.role)
    assert task is not None
    return TaskContext(of, round_, task, worker.networks, worker.data, worker.site.config.policy, secret=bytes(32))


def test_every_study_site_round_task_and_purpose_has_randomness_of_its_own(north: Worker, east: Worker) -> None:
    def seed(worker: Worker, of: Study, round_: Round, purpose: str = "views") -> int:
        return context_of(worker, of, round_).generator(purpose).initial_seed()

    refine = round_of(STUDY, "refine")
    seeds = [seed(worker, STUDY, round_) for worker in (north, east) for round_ in STUDY.rounds()]
    seeds += [seed(north, STUDY, refine, "noise"), seed(north, study(name="other"), refine)]
    seeds += [seed(north, study(seed=1), refine)]
    seeds += [seed(east, STUDY, Round(refine.index, round_of(STUDY, "adapt").stage, 0))]
    assert len(set(seeds)) == len(seeds)


def test_a_changed_setting_reshuffles_no_draw_and_meets_other_noise(north: Worker) -> None:
    """Were the noise the same too, two studies of one name and other settings would show it in their difference."""
    refine, other = round_of(STUDY, "refine"), study(weight_decay=0.1)
    plain, changed = context_of(north, STUDY, refine), context_of(north, other, refine)
    assert plain.generator("views").initial_seed() == changed.generator("views").initial_seed()
    assert plain.request == changed.request
    assert plain.key("privacy") != changed.key("privacy")
    assert plain.key("privacy") == context_of(north, study(), refine).key("privacy")


def test_the_worker_says_who_it_is(north: Worker, east: Worker) -> None:
    replies = [unpack(worker.handle(pack(EnrolRequest(study=STUDY.hash()))))[0] for worker in (north, east)]
    seen = [(r.site, r.role, r.patients, r.labelled_test) for r in replies if isinstance(r, EnrolReply)]
    assert seen == [("north", "source", 6, True), ("east", "target", 6, True)]


FEW = {"train": 4, "calibrate": 4, "val": 4, "test": 4}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Study, str], Worker]:
    """Opens a site of a role with one patient in each split less than its policy asks for."""
    root = tmp_path_factory.mktemp("few")
    folders = {role: write_site(root / f"few-{role}", role, patients=FEW) for role in ("source", "target")}
    return lambda of, role: workers(of, [folders[role]])[0]


@pytest.mark.parametrize(
    ("stage", "role", "numbers"),
    [
        ("refine", "source", {"val_dice", "foreground_fraction"}),
        ("infuse", "source", {"val_dice"}),
        ("score", "source", {"val_dice"}),
        ("refine", "target", {"score"}),
        ("infuse", "target", {"score"}),
        ("score", "target", {"score"}),
    ],
)
def test_a_number_over_too_few_patients_is_not_sent(
    stage: str, role: str, numbers: set[str], few: Callable[[Study, str], Worker], north: Worker, east: Worker
) -> None:
    payload = request(STUDY, stage, role)
    enough = north if role == "source" else east
    assert numbers <= answer(enough, payload)[0].metrics.keys()
    assert not numbers & answer(few(STUDY, role), payload)[0].metrics.keys()


@pytest.mark.parametrize("role", ["source", "target"])
def test_an_evaluation_over_too_few_patients_sends_no_number(role: str, few: Callable[[Study, str], Worker]) -> None:
    worker = few(STUDY, role)
    assert answer(worker, request(STUDY, "evaluate", role))[0].metrics == {}
    declared, _ = unpack(worker.handle(pack(EnrolRequest(study=STUDY.hash()))))
    assert isinstance(declared, EnrolReply)
    assert not declared.labelled_test


def test_an_evaluation_reports_paired_differences_to_a_given_baseline(pair: Sequence[Path], trained: Tensors) -> None:
    of = study(initial={"baseline": {"file": "x", "sha256": "0" * 64}})
    (worker,) = workers(of, pair[1:])
    baseline = {k.replace("source_branch", "baseline"): x for k, x in trained.items() if k.startswith("source_branch")}
    metrics = answer(worker, request(of, "evaluate", "target", trained | baseline))[0].metrics
    assert metrics["source_branch/dice/difference"] == 0
    assert metrics["source_branch/dice/mean"] == metrics["baseline/dice/mean"]
    assert metrics["infusion/dice/difference"] == pytest.approx(
        metrics["infusion/dice/mean"] - metrics["baseline/dice/mean"],
        abs=0.001,  # each leaves with three digits
    )
    for predictor in ("baseline", *BRANCHES, "average", "infusion"):
        assert (
            metrics[f"{predictor}/dice/low"] <= metrics[f"{predictor}/dice/mean"] <= metrics[f"{predictor}/dice/high"]
        )
        assert metrics[f"{predictor}/dice/patients"] == 5
    assert not any(name.startswith("baseline/") and "difference" in name for name in metrics)


def test_an_evaluation_sends_no_count_but_the_rounded_one_of_patients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = load_site(write_site(tmp_path / "east", "target", patients={"train": 6, "test": 6}))
    worker = Worker(with_policy(site, patients_rounded_to=4), STUDY, b"s" * 32)
    calls = itertools.count()

    def measured(*_: object) -> FrameMeasures:
        first = next(calls) < 4  # of six frames, under each of four predictors
        return FrameMeasures(0.5, 0.5, 0.5, 0.5, empty_truth=first, empty_prediction=not first)

    monkeypatch.setattr("clients.learning.evaluate.measure_frame", measured)
    metrics = answer(worker, request(STUDY, "evaluate", "target"))[0].metrics
    assert {value for name, value in metrics.items() if name.endswith("/patients")} == {4}
    assert {value for name, value in metrics.items() if name.count("/") == 2} == {4, 0.5}
    assert {value for name, value in metrics.items() if name.endswith("/empty_truth_share")} == {0.17}
    assert {value for name, value in metrics.items() if name.endswith("/empty_prediction_share")} == {0.83}


def test_a_stage_without_a_task_for_a_role_is_refused_there(pair: Sequence[Path]) -> None:
    of = one_stage(source={"task": "supervise", "trains": ["source_branch"], "steps": 1})
    (worker,) = workers(of, pair[1:])
    assert round_of(of, "only").stage.target is None
    assert refusal(worker.handle(request(of, "only", "source"))).code == "other-task"
