"""A round: replies that break the contract are named and count for nothing; the rest goes its way."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import enrolled, round_of, same, study, workers

from common.components import Tensors
from common.contract import check_metrics
from common.errors import ContractError
from common.messages import Refusal, TaskReply, pack, unpack
from common.stage import Round
from server.algorithm import init
from server.history import RoundRecord
from server.rounds import requests_of, run_round
from server.run import enrol, initial_components
from server.state import ServerState
from server.transport import Failure
from simulations.local import LocalTransport

STUDY = study(participation={"quorum": {"source": 1, "target": 1}})
ROUND = round_of(STUDY, "refine", 1)
BIAS = "target_branch.decoder/final_conv.bias"


class Replay:
    """A `Transport` that gives known replies, in the order in which they stand."""

    def __init__(self, replies: Mapping[str, bytes | Failure]) -> None:
        self.replies = replies

    def enrol(
        self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
    ) -> Mapping[str, bytes | Failure]:
        return self.replies

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        yield from ((site, reply) for site, reply in self.replies.items() if site in requests)


@dataclass(frozen=True)
class Asked:
    """A round of four sites just before its replies count, with those of the round before."""

    state: ServerState
    requests: dict[str, bytes]
    replies: dict[str, bytes]
    earlier: dict[str, bytes]

    def follow(
        self, replies: Mapping[str, bytes | Failure], round_: Round = ROUND, **changes: Any
    ) -> tuple[ServerState, RoundRecord]:
        return run_round(STUDY, replace(self.state, **changes), round_, Replay(replies))


@pytest.fixture(scope="module")
def asked(four: Sequence[Path]) -> Asked:
    transport = LocalTransport(workers(STUDY, four))
    state = init(STUDY, enrol(STUDY, transport), initial_components(STUDY))
    state = replace(state, round=ROUND.index, foreground_prior=0.2)
    answers = []
    for round_ in (round_of(STUDY, "refine", 0), ROUND):
        requests = {site: message.payload for site, message in requests_of(STUDY, state, round_).items()}
        answers.append(dict(transport.exchange(requests, lambda site: "", 1)))
    return Asked(state, requests, answers[1], answers[0])  # type: ignore[arg-type]


def header_with(**fields: Any) -> Callable[[bytes], bytes]:
    def poison(reply: bytes) -> bytes:
        header, tensors = unpack(reply)
        return pack(header.model_copy(update=fields), tensors)

    return poison


def tensors_with(change: Callable[[Tensors], Tensors]) -> Callable[[bytes], bytes]:
    def poison(reply: bytes) -> bytes:
        header, tensors = unpack(reply)
        return pack(header, change(tensors))

    return poison


def bias(value: Any, dtype: type = np.float32) -> Callable[[bytes], bytes]:
    return tensors_with(lambda tensors: tensors | {BIAS: np.array(value, dtype)})


def other_kind(header: Any) -> Callable[[bytes], bytes]:
    return lambda reply: pack(header)


POISONS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda reply: b"", "not-a-message"),
    "garbage": (lambda reply: b"<html>502</html>" * 9, "not-a-message"),
    "cut in the header": (lambda reply: reply[:60], "not-a-message"),
    "cut in the tensors": (lambda reply: reply[:-100], "bad-tensors"),
    "another kind": (other_kind(enrolled(study=STUDY.hash(), site="south")), "not-a-reply"),
    "a refusal": (other_kind(Refusal(code="not-approved", message="no")), "not-approved"),
    "wrong shape": (bias([[0.0]]), "wrong-shape"),
    "wrong dtype": (bias([0.0], np.float64), "wrong-dtype"),
    "NaN": (bias([np.nan]), "not-finite"),
    "infinity": (bias([-np.inf]), "not-finite"),
    "scaled": (tensors_with(lambda t: {name: x * np.float32(1e6) for name, x in t.items()}), "absurd-norm"),
    "missing": (tensors_with(lambda t: {name: x for name, x in t.items() if name != BIAS}), "missing-tensor"),
    "no tensors": (tensors_with(lambda t: {}), "missing-tensor"),
    "unknown": (tensors_with(lambda t: t | {"infusion_head/x": np.zeros(1, np.float32)}), "unknown-tensor"),
    "of another study": (header_with(study="0" * 64), "other-request"),
    "of an old round": (header_with(round=ROUND.index - 1), "other-request"),
    "to another request": (header_with(request="0" * 64), "other-request"),
    "of another task": (header_with(task="score", metrics={}), "other-request"),
    "with a free text for a stage": (header_with(stage="Anna Schmidt, born 2014"), "other-request"),
    "unknown metric": (header_with(metrics={"patient_7": 0.5}), "unknown-metric"),
    "negative loss": (header_with(metrics={"loss": -1.0}), "out-of-range"),
    "metric without a number": (header_with(metrics={"loss": float("nan")}), "not-"),
}


@pytest.mark.parametrize(("poison", "code"), POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("site", ["south", "west"])
def test_a_poisoned_reply_is_named_and_counts_as_if_its_site_were_not_there(
    poison: Callable[[bytes], bytes], code: str, site: str, asked: Asked
) -> None:
    state, record = asked.follow(asked.replies | {site: poison(asked.replies[site])})
    without, _ = asked.follow({name: reply for name, reply in asked.replies.items() if name != site})
    assert record.sites[site].status == "refused"
    assert code in record.sites[site].detail
    assert not record.sites[site].metrics
    assert record.counted
    assert same(state.components, without.components)
    assert (state.foreground_prior, state.best_score) == (without.foreground_prior, without.best_score)
    assert not same(state.components, asked.follow(asked.replies)[0].components)


def test_a_whole_reply_to_the_round_before_is_refused(asked: Asked) -> None:
    _, record = asked.follow(asked.replies | {"south": asked.earlier["south"]})
    assert (record.sites["south"].status, record.sites["north"].status) == ("refused", "ok")
    assert "other-request" in record.sites["south"].detail


def test_shares_that_nobody_asked_for_are_refused(asked: Asked) -> None:
    header, updates = unpack(asked.replies["south"])
    fat = pack(header.model_copy(update={"shares": {"north": "ab" * 100}}), updates)
    _, record = asked.follow(asked.replies | {"south": fat})
    assert (record.sites["south"].status, record.sites["north"].status) == ("refused", "ok")
    assert "not-a-reply" in record.sites["south"].detail


def test_the_round_that_counts_moves_the_model(asked: Asked) -> None:
    state, record = asked.follow(asked.replies)
    assert {site.status for site in record.sites.values()} == {"ok"}
    assert state.round == ROUND.index + 1
    assert not same(state.components, asked.state.components)
    untouched = [name for name in state.components if name.startswith(("mim_decoder", "projector", "infusion_head"))]
    assert untouched
    assert all(state.components[name] is asked.state.components[name] for name in untouched)


def test_any_order_of_arrival_gives_the_same_state(asked: Asked) -> None:
    expected, _ = asked.follow(asked.replies)
    for order in itertools.permutations(asked.replies):
        state, _ = asked.follow({site: asked.replies[site] for site in order})
        assert same(state.components, expected.components)
        assert replace(state, components={}, released={}) == replace(expected, components={}, released={})


@pytest.mark.parametrize("code", ["late", "failed"])
def test_a_site_that_gave_no_reply_is_recorded_and_does_not_stop_the_others(code: str, asked: Asked) -> None:
    state, record = asked.follow(asked.replies | {"west": Failure(code, "no reply within 9 s")})
    assert (record.sites["west"].status, record.sites["west"].detail) == (code, "no reply within 9 s")
    assert record.sites["east"].status == "ok"
    assert state.round == ROUND.index + 1


def test_a_site_whose_worker_was_still_at_work_is_late(asked: Asked) -> None:
    answer = pack(Refusal(code="worker-timeout", message="the site's worker did not finish"))
    _, record = asked.follow(asked.replies | {"west": answer})
    assert (record.sites["west"].status, record.sites["east"].status) == ("late", "ok")


def test_a_round_below_quorum_changes_nothing_but_the_bytes_counted(asked: Asked) -> None:
    state, record = asked.follow({site: asked.replies[site] for site in ("north", "south")})
    assert not record.counted
    received = len(asked.replies["north"]) + len(asked.replies["south"])
    assert state == replace(asked.state, bytes_to_sites=state.bytes_to_sites, bytes_from_sites=received)


def test_all_sites_of_a_role_are_asked_with_the_same_bytes(asked: Asked) -> None:
    for round_ in STUDY.rounds():
        requests = requests_of(STUDY, asked.state, round_)
        assert requests.keys() == {"north", "south", "east", "west"}
        assert requests["north"] == requests["south"]
        assert requests["east"] == requests["west"]


def test_only_sites_with_labels_are_asked_to_evaluate(asked: Asked) -> None:
    participants = {
        name: replace(participant, labelled_test=name in ("north", "west"))
        for name, participant in asked.state.participants.items()
    }
    state = replace(asked.state, participants=participants)
    assert requests_of(STUDY, state, round_of(STUDY, "evaluate")).keys() == {"north", "west"}
    assert requests_of(STUDY, state, round_of(STUDY, "score")).keys() == participants.keys()


def test_sites_get_the_components_of_their_task_and_the_evaluation_the_released_model(asked: Asked) -> None:
    released = {name: x + 1 for name, x in asked.state.components.items() if name.startswith("source_branch")}
    state = replace(asked.state, released=released)
    for round_ in STUDY.rounds():
        expected = asked.state.components | (released if round_.stage.name == "evaluate" else {})
        for site, request in requests_of(STUDY, state, round_).items():
            task = round_.stage.task_of(state.participants[site].role)
            assert task is not None
            tensors = request.tensors
            assert {name.partition("/")[0] for name in tensors} == set(STUDY.components_of(task))
            assert same(tensors, {name: expected[name] for name in tensors})


def test_patients_weigh_the_sources_foreground_and_the_targets_score(asked: Asked) -> None:
    values = {"north": 0.1, "south": 0.4, "east": 0.5, "west": 0.9}
    replies = {}
    for site, reply in asked.replies.items():
        name = "foreground_fraction" if asked.state.participants[site].role == "source" else "score"
        header, _ = unpack(reply)
        assert isinstance(header, TaskReply)
        replies[site] = header_with(metrics=header.metrics | {name: values[site]})(reply)
    state, record = asked.follow(replies)
    assert state.foreground_prior == pytest.approx((6 * 0.1 + 9 * 0.4) / 15)
    assert record.score == state.best_score == pytest.approx((6 * 0.5 + 6 * 0.9) / 12)


@pytest.mark.parametrize(
    ("site", "name", "number"), [("south", "foreground_fraction", 5.0), ("west", "score", 1e9), ("west", "score", -1.0)]
)
def test_a_number_outside_its_range_moves_neither_prior_nor_released_model(
    site: str, name: str, number: float, asked: Asked
) -> None:
    state, record = asked.follow(asked.replies | {site: header_with(metrics={name: number})(asked.replies[site])})
    without, _ = asked.follow({other: reply for other, reply in asked.replies.items() if other != site})
    assert record.sites[site].detail.startswith(f"out-of-range: {name}: expected 0 to 1, found {number:g}")
    assert (state.foreground_prior, state.best_score) == (without.foreground_prior, without.best_score)
    assert requests_of(STUDY, state, round_of(STUDY, "score"))


def test_a_share_that_rounding_brought_over_1_can_still_be_asked_on(asked: Asked) -> None:
    over = header_with(metrics={"foreground_fraction": 1 + 1e-7})
    replies = {site: over(reply) if site in ("north", "south") else reply for site, reply in asked.replies.items()}
    state, record = asked.follow(replies)
    assert record.counted
    assert state.foreground_prior == 1.0
    assert requests_of(STUDY, state, round_of(STUDY, "score"))


def test_the_metrics_of_every_poison_free_reply_keep_the_contract(asked: Asked) -> None:
    _, record = asked.follow(asked.replies)
    for site in record.sites.values():
        check_metrics(site.task, site.metrics)
    with pytest.raises(ContractError):
        check_metrics("supervise", record.sites["east"].metrics)
