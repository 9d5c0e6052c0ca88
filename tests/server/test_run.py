"""A whole run: who may start it, when it repeats a round, rolls back, gives up, and which model it releases."""

import json
import struct
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished import Finished
from safetensors.numpy import load_file
from tiny import Between, content, one_stage, same, study, workers, write_site

from common.baseline import baseline_of
from common.components import Tensors
from common.errors import RunError
from common.messages import EnrolReply, Refusal, TaskReply, TaskRequest, digest, pack, unpack
from common.run_folder import RunFolder
from common.study import Study, read_study_of_run
from server import history
from server.algorithm import Reply, apply, init
from server.run import enrol, initial_components, run_study
from server.state import Participant, fused_tensors, load_state
from server.transport import Failure
from simulations.local import LocalTransport


def scored(plan: dict[int, float], number: str = "score") -> Callable[[bytes, bytes], bytes]:
    """Replies with a plan's values of a number that tells how good the received model is, by round."""

    def rescore(request: bytes, reply: bytes) -> bytes:
        header, tensors = unpack(reply)
        assert isinstance(header, TaskReply)
        if number not in header.metrics:
            return reply
        return pack(header.model_copy(update={"metrics": header.metrics | {number: plan[header.round]}}), tensors)

    return rescore


def refining(rounds: int, **changes: Any) -> Study:
    stages = content()["stages"]
    return study(stages=[stages[2] | {"rounds": rounds}], **changes)


def planned(
    scores: Sequence[float],
    pair: Sequence[Path],
    run: Path,
    val_dice: Sequence[float] | None = None,
    **changes: Any,
) -> tuple[Between, list[history.RoundRecord]]:
    """A run of refine rounds and the closing ones, of which each received model is scored as planned."""
    of = refining(len(scores) - 1, **changes)
    at_source = scored(dict(enumerate(val_dice or [0.8] * len(scores))), "val_dice")
    transport = Between(workers(of, pair), {"east": scored(dict(enumerate(scores))), "north": at_source})
    run_study(of, transport, run)
    return transport, history.read(run)


def sent_model(transport: Between, index: int) -> Tensors:
    return fused_tensors(unpack(transport.sent[index]["east"])[1])


@pytest.mark.parametrize(
    ("scores", "released"),
    [
        ((0.5, 0.6, 0.7), 2),
        ((0.5, 0.9, 0.7), 1),
        ((0.9, 0.89, 0.7), 1),
        ((0.9, 0.89, 0.875), 1),  # too far below the best, though not below the round before
    ],
)
def test_the_released_model_is_the_latest_that_scores_about_as_well_as_the_best(
    scores: Sequence[float], released: int, pair: Sequence[Path], tmp_path: Path
) -> None:
    transport, records = planned(scores, pair, tmp_path / "run", release={"tolerance": 0.02, "rollback": 1.0})
    assert [r.score for r in records] == [*(pytest.approx(score) for score in scores), None]
    assert records[-1].released_round == released
    model = load_file(RunFolder(tmp_path / "run").model)
    assert same(model, sent_model(transport, released))
    assert same(sent_model(transport, len(scores)), model), "the released model is the one evaluated"


def refuses(code: str, rounds: Collection[int]) -> Callable[[bytes, bytes], bytes]:
    """Replies of a site that says no in some rounds."""

    def no(request: bytes, reply: bytes) -> bytes:
        header, _ = unpack(request)
        assert isinstance(header, TaskRequest)
        return pack(Refusal(code=code, message="no")) if header.round in rounds else reply

    return no


def test_a_last_model_that_looks_made_to_a_site_is_not_released_and_the_one_before_is(
    pair: Sequence[Path], tmp_path: Path
) -> None:
    of, run = refining(2), tmp_path / "run"
    transport = Between(workers(of, pair), {"east": refuses("implausible-weights", {2})})
    run_study(of, transport, run)
    records = history.read(run)
    assert [(r.round, r.stage, r.counted) for r in records] == [
        (0, "refine", True),
        (1, "refine", True),
        (2, "score", False),
        (3, "evaluate", True),
    ]
    assert records[-1].released_round == 1
    model = load_file(RunFolder(run).model)
    assert same(model, sent_model(transport, 1))
    assert not same(model, sent_model(transport, 2))


@pytest.mark.parametrize(("code", "rounds"), [("not-approved", {1}), ("implausible-weights", {0})])
def test_another_refusal_or_one_of_a_round_that_trains_stops_the_run(
    code: str, rounds: Collection[int], pair: Sequence[Path], tmp_path: Path
) -> None:
    of = refining(1, participation={"retries": 0})
    with pytest.raises(RunError, match=f"round {min(rounds)} .*fell short of quorum.*{code}"):
        run_study(of, Between(workers(of, pair), {"east": refuses(code, rounds)}), tmp_path / "run")
    assert not RunFolder(tmp_path / "run").model.exists()


def test_a_fall_in_score_restores_the_released_model(pair: Sequence[Path], tmp_path: Path) -> None:
    transport, records = planned((0.5, 0.9, 0.3, 0.9), pair, tmp_path / "run", release={"rollback": 0.05})
    assert [r.rolled_back for r in records] == [False, False, True, False, False]
    assert not same(sent_model(transport, 2), sent_model(transport, 1))
    assert same(sent_model(transport, 3), sent_model(transport, 1))


@pytest.mark.parametrize(
    ("val_dice", "released", "undone"),
    [
        ((0.8, 0.82, 0.81), 2, []),
        ((0.8, 0.7, 0.7), 0, []),
        ((0.8, 0.7, 0.79), 2, []),  # it came back
        ((0.8, 0.3, 0.8), 2, [1]),
    ],
)
def test_a_model_that_lost_the_labelled_probe_is_not_released_however_steady_it_is(
    val_dice: Sequence[float], released: int, undone: list[int], pair: Sequence[Path], tmp_path: Path
) -> None:
    limits = {"tolerance": 0.02, "rollback": 0.3}
    _, records = planned((0.5, 0.6, 0.7), pair, tmp_path / "run", val_dice, release=limits)
    assert records[-1].released_round == released
    assert [record.round for record in records if record.rolled_back] == undone


@pytest.mark.parametrize(
    "unsteady", [((0.75, 0.97, 0.75, 0.76), (0.9, 0.5, 0.9, 0.9)), ((0.9, 0.5, 0.9), (0.7, 0.9, 0.7))]
)
def test_a_model_that_won_in_one_number_and_lost_in_the_other_does_not_have_all_others_undone(
    unsteady: tuple[Sequence[float], Sequence[float]], pair: Sequence[Path], tmp_path: Path
) -> None:
    scores, val_dice = unsteady
    _, records = planned(scores, pair, tmp_path / "run", val_dice)
    assert [record.round for record in records if record.rolled_back] == [1]
    assert records[-1].released_round == len(scores) - 1


def judged(*rounds: dict[str, float | None]) -> list[int | None]:
    """The round that is released after each round of refine in which a target and sources say these numbers."""
    of = refining(len(rounds))
    sites = {name: Participant("target" if name == "east" else "source", 6, True) for name in ("east", "north", "west")}
    state = init(of, sites, initial_components(of))
    found = []
    for round_, numbers in zip(of.rounds(), rounds, strict=False):
        replies = [
            Reply(site, {"score" if site == "east" else "val_dice": x} if x is not None else {}, {})
            for site, x in numbers.items()
        ]
        state, _ = apply(of, state, round_, replies)
        found.append(state.released_round)
    return found


def test_each_source_is_held_against_its_own_best_whoever_answers() -> None:
    both, north_alone = {"east": 0.9, "north": 0.92, "west": 0.5}, {"east": 0.9, "north": 0.93}
    assert judged(both, north_alone, both, both) == [0, 1, 2, 3]
    assert judged(both, north_alone, both | {"west": 0.3}) == [0, 1, 1]


def test_a_round_of_which_no_source_that_knows_says_a_dice_releases_nothing() -> None:
    known = {"east": 0.9, "north": 0.85}
    assert judged(known, {"east": 0.9, "west": 0.5}, known | {"north": 0.4}, known) == [0, 0, 0, 3]
    # where no source ever says one, the score decides alone
    assert judged({"east": 0.9, "west": None}, {"east": 0.9, "west": None}) == [0, 1]


def test_a_fall_within_the_tolerance_is_not_undone(pair: Sequence[Path], tmp_path: Path) -> None:
    transport, records = planned(
        (0.9, 0.86, 0.86), pair, tmp_path / "run", release={"tolerance": 0.02, "rollback": 0.05}
    )
    assert not any(r.rolled_back for r in records)
    assert records[-1].released_round == 0
    assert not same(sent_model(transport, 2), sent_model(transport, 1))


def test_a_site_without_enough_labels_takes_part_but_is_not_evaluated(pair: Sequence[Path], tmp_path: Path) -> None:
    bare = write_site(tmp_path / "bare", "target", patients={"train": 6, "test": 0})
    of = refining(1)
    run_study(of, Between(workers(of, [pair[0], bare])), tmp_path / "run")
    records = {r.stage: r for r in history.read(tmp_path / "run")}
    assert records["refine"].sites["bare"].status == "ok"
    assert records["evaluate"].sites.keys() == {"north"}


def short(of: int) -> Callable[[bytes, bytes], bytes | Failure]:
    """The first `of` replies are late."""
    seen: list[bytes] = []

    def late(request: bytes, reply: bytes) -> bytes | Failure:
        seen.append(reply)
        return Failure("late", "no reply within 1 s") if len(seen) <= of else reply

    return late


def test_a_round_below_quorum_is_repeated_and_the_result_is_the_same(finished: Finished, tmp_path: Path) -> None:
    transport = Between(list(finished.transport.workers.values()), {"east": short(2)})
    run_study(finished.study, transport, tmp_path / "run")
    records = history.read(tmp_path / "run")
    assert [(r.round, r.counted) for r in records][:4] == [(0, False), (0, False), (0, True), (1, True)]
    assert RunFolder(tmp_path / "run").model.read_bytes() == RunFolder(finished.run).model.read_bytes()


def test_a_role_below_quorum_for_good_stops_the_run_with_everything_saved(pair: Sequence[Path], tmp_path: Path) -> None:
    of = study(participation={"retries": 2})
    reference, run = tmp_path / "reference", tmp_path / "run"
    run_study(of, LocalTransport(workers(of, pair)), reference)

    def after_two_rounds(request: bytes, reply: bytes) -> bytes | Failure:
        header, _ = unpack(reply)
        assert isinstance(header, TaskReply)
        return reply if header.round < 2 else Failure("failed", "not connected")

    with pytest.raises(RunError, match=r"round 2 \(refine\).*3 times.*east failed not connected.*--resume"):
        run_study(of, Between(workers(of, pair), {"east": after_two_rounds}), run)
    assert [(r.round, r.counted) for r in history.read(run)] == [(0, True), (1, True), *[(2, False)] * 3]
    state = load_state(RunFolder(run).checkpoint, of.hash())
    assert state is not None
    assert state.round == 2
    run_study(of, LocalTransport(workers(of, pair)), run, resume=True)
    assert RunFolder(run).model.read_bytes() == RunFolder(reference).model.read_bytes()


def test_a_run_leaves_its_study_its_model_and_a_line_a_round(finished: Finished) -> None:
    assert read_study_of_run(finished.run).hash() == finished.study.hash()
    assert [r.round for r in history.read(finished.run)] == [r.index for r in finished.study.rounds()]
    assert same(load_file(RunFolder(finished.run).model), finished.state.released)


def test_the_counted_bytes_are_those_that_went_over_the_wire(finished: Finished) -> None:
    sent = sum(len(payload) for sent in finished.transport.sent for payload in sent.values())
    received = sum(len(reply) for seen in finished.transport.received for reply in seen.values())
    assert (finished.state.bytes_to_sites, finished.state.bytes_from_sites) == (sent, received)


def test_a_baseline_run_gives_one_branch_that_a_study_can_start_from(pair: Sequence[Path], tmp_path: Path) -> None:
    run = tmp_path / "baseline"
    run_study(baseline_of(study(), rounds=2), LocalTransport(workers(baseline_of(study(), rounds=2), pair[:1])), run)
    model = load_file(RunFolder(run).model)
    assert {name.partition("/")[0] for name in model} == {"source_branch.encoder", "source_branch.decoder"}
    given = {"file": str(RunFolder(run).model), "sha256": digest(RunFolder(run).model.read_bytes())}
    components = initial_components(study(initial={"baseline": given, "source_branch": given}))
    for name, x in model.items():
        assert components[name].tobytes() == x.tobytes()
        assert components[name.replace("source_branch", "baseline")].tobytes() == x.tobytes()


@pytest.mark.parametrize("case", ["missing", "other content", "no weights", "other numbers", "too small"])
def test_initial_weights_that_do_not_fit_are_named(case: str, finished: Finished, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    blob = b"PK" if case == "no weights" else RunFolder(finished.run).model.read_bytes()
    if case == "other numbers":  # of a kind that numpy has not
        header = json.dumps({"x": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
        blob = struct.pack("<Q", len(header)) + header + bytes(2)
    file.write_bytes(blob)
    given = {"file": str(file), "sha256": digest(b"" if case == "other content" else blob)}
    if case == "missing":
        file.unlink()
    network = {"features": [16] * 6} if case == "too small" else finished.study.network.model_dump()
    with pytest.raises(RunError, match=r"initial weights of `source_branch`.*w\.safetensors"):
        initial_components(study(initial={"source_branch": given}, network=network))


def replies(**changes: Any) -> Callable[[bytes], bytes]:
    fields = {"study": study().hash(), "site": "east", "role": "target", "patients": 6, "labelled_test": True}

    def reply(request: bytes) -> bytes:
        return pack(EnrolReply.model_validate(fields | {"request": digest(request), "software": "1"} | changes))

    return reply


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Failure("late", "no reply within 9 s"), "late: no reply within 9 s"),
        (b"hello", "not-a-message"),
        (pack(Refusal(code="not-approved", message="approve it first")), "not-approved: approve it first"),
        (replies(study="0" * 64), "not-a-reply"),
        (replies(request="0" * 64), "old-reply"),
        (replies(patients=0), "no-patients"),
        (replies(site="west"), "other-name: its site.yaml names it west"),
    ],
)
def test_a_role_without_sites_stops_the_run_before_it_starts_and_says_why(
    answer: bytes | Failure | Callable[[bytes], bytes], why: str, pair: Sequence[Path], tmp_path: Path
) -> None:
    class Enrolling(LocalTransport):
        def enrol(
            self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
        ) -> dict[str, bytes | Failure]:
            return dict(super().enrol(request)) | {"east": answer(request) if callable(answer) else answer}

    with pytest.raises(RunError, match=f"needs 1 target site.*found 0:\n  east: {why}"):
        run_study(study(), Enrolling(workers(study(), pair)), tmp_path / "run")


@pytest.mark.parametrize("cap", [None, 4])
def test_a_site_of_a_million_patients_is_the_average_unless_the_study_caps_what_it_counts_for(
    cap: int | None, pair: Sequence[Path], tmp_path: Path
) -> None:
    class Boasting(LocalTransport):
        def enrol(
            self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
        ) -> dict[str, bytes | Failure]:
            found = dict(super().enrol(request))
            header = unpack(found["south"])[0]
            return found | {"south": pack(header.model_copy(update={"patients": 1_000_000}))}

    task = {"task": "supervise", "trains": ["source_branch"], "steps": 1}
    of = study(stages=[{"name": "only", "rounds": 1, "source": task}], participation={"patients_cap": cap})
    both = [pair[0], write_site(tmp_path / "south", "source", seed=1)]
    ran = {
        kind: run_study(of, kind(workers(of, both)), tmp_path / kind.__name__) for kind in (LocalTransport, Boasting)
    }
    alone = run_study(of, LocalTransport(workers(of, both[1:])), tmp_path / "alone")
    honest, boasted = (state.components for state in ran.values())
    counts = [site.patients for site in ran[Boasting].participants.values()]
    assert counts == ([6, 1_000_000] if cap is None else [4, 4])
    assert same(honest, boasted) == (cap is not None)
    apart, own = (max(np.abs(x[n] - known).max() for n, known in alone.components.items()) for x in (honest, boasted))
    assert (own < apart / 100) == (cap is None)


def test_all_roles_that_are_short_are_named_at_once() -> None:
    with pytest.raises(RunError, match=r"needs 1 source site\(s\), found 0, needs 1 target site\(s\), found 0:"):
        enrol(study(), LocalTransport([]))


def test_roles_that_a_study_does_not_need_are_not_waited_for(pair: Sequence[Path]) -> None:
    of = one_stage(source={"task": "supervise", "trains": ["source_branch"], "steps": 1})
    assert enrol(of, LocalTransport(workers(of, pair[:1]))).keys() == {"north"}


def test_a_second_process_cannot_write_into_the_same_run(pair: Sequence[Path], tmp_path: Path) -> None:
    of = study()

    def second(record: object) -> None:
        with pytest.raises(RunError, match="another process is still at work"):
            run_study(of, LocalTransport(workers(of, pair)), tmp_path / "run", resume=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(of, LocalTransport(workers(of, pair)), tmp_path / "run", on_round=second)
    assert run_study(of, LocalTransport(workers(of, pair)), tmp_path / "run", resume=True).round > 0


def test_a_runs_folder_and_all_in_it_are_closed_to_others(finished: Finished) -> None:
    """It holds numbers of single sites, and models that were never released."""
    modes = {path.name: path.stat().st_mode & 0o777 for path in [finished.run, *finished.run.rglob("*")]}
    folders = {finished.run.name, RunFolder(finished.run).checkpoint.name, RunFolder(finished.run).release.name}
    assert {"study.yaml", "history.jsonl", "model.safetensors", "state.json", "run.lock"} <= modes.keys()
    assert modes == {name: 0o700 if name in folders else 0o600 for name in modes}
