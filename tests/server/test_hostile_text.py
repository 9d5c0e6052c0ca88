"""What a hostile site writes into its messages, at the coordinator's end: no terminal code, no flood, no other line."""

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping

import pytest
from tiny import enrolled, round_of, study

from common.errors import RunError
from common.messages import Refusal, pack
from server.algorithm import init
from server.federation.following import line
from server.history import RoundRecord
from server.rounds import run_round
from server.run import enrol, initial_components
from server.state import Participant
from server.transport import Failure

STUDY = study()
ROUND = round_of(STUDY, "pretrain")
PEOPLE = {"north": Participant("source", 6, True), "east": Participant("target", 6, True)}
CODES = "\x1b[2J\x1b]0;owned\x07\r\n"
FLOOD = "k" * 500_000


def raw(content: dict[str, object]) -> bytes:
    """A message with any header at all."""
    head = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return b"XPRB" + len(head).to_bytes(4, "little") + head


ENROL = {"protocol": 1, "kind": "enrolled", "study": STUDY.hash(), "site": "north", "role": "source", "patients": 6}
ENROL |= {"labelled_test": True, "software": "1", "request": "0" * 64}
REFUSAL = {"protocol": 1, "kind": "refused", "code": "busy", "message": "no", "ledger_head": None}
HOSTILE = {
    "a sentence with terminal codes": raw(REFUSAL | {"message": CODES}),
    "a sentence with another alphabet's": raw(REFUSAL | {"message": "\u202eno\u2028"}),
    "a code with terminal codes": raw(REFUSAL | {"code": CODES}),
    "a key with terminal codes": raw(REFUSAL | {CODES: 1}),
    "half a megabyte of a key": raw(REFUSAL | {FLOOD: 1}),
    "half a megabyte of keys": raw(REFUSAL | {f"key{number}": 1 for number in range(40_000)}),
    "half a megabyte of a sentence": raw(REFUSAL | {"message": FLOOD}),
    "a name with terminal codes": raw(ENROL | {"site": CODES}),
    "a version with terminal codes": raw(ENROL | {"software": CODES}),
    "a kind with terminal codes": raw(REFUSAL | {"kind": CODES}),
    "deep nesting": raw(REFUSAL | {"message": json.loads("[" * 400 + "]" * 400)}),
    "no JSON": b"XPRB" + len(CODES * 9).to_bytes(4, "little") + CODES.encode() * 9,
}


class Replay:
    """A `Transport` on which every site gives the same bytes."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    def enrol(
        self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
    ) -> Mapping[str, bytes | Failure]:
        return dict.fromkeys(("north", "east"), self.payload)

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        return ((site, self.payload) for site in requests)


def plain(text: str) -> bool:
    return len(text) < 1500 and all(letter.isprintable() or letter == "\n" for letter in text)


def played(payload: bytes) -> RoundRecord:
    state = init(STUDY, PEOPLE, initial_components(STUDY))
    return run_round(STUDY, state, ROUND, Replay(payload))[1]


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE)
def test_a_rounds_record_line_and_log_stay_short_and_plain(payload: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        record = played(payload)
    assert {site.status for site in record.sites.values()} == {"refused"}
    assert all(plain(site.detail) for site in record.sites.values())
    assert plain(line(record))
    assert len(caplog.records) >= len(record.sites)
    assert all(plain(entry.getMessage()) for entry in caplog.records)


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE)
def test_what_a_coordinator_reads_of_an_enrolment_stays_short_and_plain(payload: bytes) -> None:
    with pytest.raises(RunError) as error:
        enrol(STUDY, Replay(payload))
    assert "needs 1 source site(s), found 0" in str(error.value)
    assert plain(str(error.value))


def test_an_honest_sites_sentence_is_still_read() -> None:
    record = played(pack(Refusal(code="busy", message="the site is still at work; ask `again` later")))
    assert record.sites["north"].detail == "busy: the site is still at work; ask `again` later"
    good = enrolled(software="1.2.3rc1")
    assert pack(good)
