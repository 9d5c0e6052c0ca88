"""What a hostile site can put into Flower's array, record or message: it fails alone, and the others count."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from tiny import enrolled

import common.payload
from common.messages import MAGIC, Refusal, pack
from common.payload import DTYPE, STYPE, fields_of
from server.federation.grid import GridTransport
from server.transport import Failure

HONEST = pack(Refusal(code="busy", message="a sentence"))
HEADER = b"\x93NUMPY\x01\x00"
LINE = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"


def npy(line: str, body: bytes = b"") -> bytes:
    return HEADER + len(line).to_bytes(2, "little") + line.encode() + body


@dataclass
class HostileGrid:
    """Node 1 gives an honest reply, node 2 what `hostile` makes, at each pull."""

    hostile: Any
    superlink: bool = True

    def get_nodes(self) -> list[SimpleNamespace]:
        if not self.superlink:
            raise ConnectionError("the SuperLink is away")
        return [SimpleNamespace(node_id=1, name=""), SimpleNamespace(node_id=2, name="")]

    def push_messages(self, messages: Iterable[Message]) -> Iterator[str]:
        return (str(message.metadata.dst_node_id) for message in messages)

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        (one,) = ids
        return (
            [answer(RecordDict({"message": ArrayRecord({"payload": Array(**fields_of(HONEST))})}))] * 2
            if (one == "1")
            else self.hostile()
        )


def answer(content: object) -> SimpleNamespace:
    return SimpleNamespace(has_error=lambda: False, content=content)


def carrying(array: object) -> list[SimpleNamespace]:
    return [answer(SimpleNamespace(array_records={"message": {"payload": array}}))]


def array(data: bytes, dtype: str = DTYPE, shape: tuple[int, ...] | None = None, stype: str = STYPE) -> Array:
    return Array(dtype=dtype, shape=(len(data),) if shape is None else shape, stype=stype, data=data)


@pytest.fixture(autouse=True)
def inside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def exchanged(hostile: Any, **grid: Any) -> dict[str, bytes | Failure]:
    transport = GridTransport(HostileGrid(hostile, **grid), 2)
    transport.nodes = {"honest": 1, "hostile": 2}
    return dict(transport.exchange({"honest": b"x", "hostile": b"x"}, lambda site: "score", 5.0))


def alone(hostile: Any) -> Failure:
    """The failure of a hostile site, once the honest one's reply is there untouched."""
    found = exchanged(hostile)
    assert found["honest"] == HONEST
    assert isinstance(found["hostile"], Failure), found["hostile"]
    return found["hostile"]


#: Each ended a run in which it came, but for the first and the last: `np.load` raised past the transport.
FILES = {
    "nothing": b"",
    "half a header": HEADER,
    "no header": b"PK\x03\x04",
    "64 GiB announced": npy(LINE % (1 << 34)),
    "a negative shape": npy(LINE % -1),
    "no dictionary": npy("(" * 200),
    "a pickle": npy(LINE.replace("<f4", "|O") % 1, b"\x80\x04."),
    "a whole array": npy(LINE % 1, bytes(4)),
}


@pytest.mark.parametrize("stype", ["numpy.ndarray", ""])
@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_numpy_file_is_not_read_whatever_it_says(data: bytes, stype: str) -> None:
    assert alone(lambda: carrying(array(data, stype=stype))).detail == "the reply is not a CrossProbe message"


def test_a_numpy_file_that_says_it_is_ours_is_bytes_and_nothing_more() -> None:
    data = FILES["64 GiB announced"]
    assert exchanged(lambda: carrying(array(data)))["hostile"] == data


@given(
    dtype=st.sampled_from([DTYPE, "float32", "object", ""]) | st.text(max_size=8),
    shape=st.lists(st.integers(-(2**70), 2**70), max_size=3).map(tuple),
    stype=st.sampled_from([STYPE, "numpy.ndarray"]) | st.text(max_size=8),
    data=st.binary(max_size=64),
)
def test_an_array_of_any_other_kind_fails_its_site_alone(
    dtype: str, shape: tuple[int, ...], stype: str, data: bytes
) -> None:
    if (dtype, shape, stype) != (DTYPE, (len(data),), STYPE):
        assert alone(lambda: carrying(array(data, dtype, shape, stype))).code == "failed"


def test_a_message_over_the_limit_fails_its_site_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.payload, "MAX_MESSAGE_BYTES", len(HONEST))
    assert alone(lambda: carrying(array(bytes(len(HONEST) + 1)))).code == "failed"


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"message": ConfigRecord({"payload": b"x"})}),
        RecordDict({"message": ArrayRecord({"other": array(b"x")})}),
        RecordDict({"message": ArrayRecord({"payload": Array(np.zeros(3))})}),
        None,
    ],
)
def test_another_record_fails_its_site_alone(content: object) -> None:
    assert alone(lambda: [answer(content)]).code == "failed"


@pytest.mark.parametrize("error", [ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError])
def test_what_flower_cannot_unpack_fails_its_site_alone(error: type[Exception]) -> None:
    def pull() -> list[Any]:
        raise error("\x1b[2J anna-schmidt.png")

    assert "anna" not in alone(pull).detail


def test_a_superlink_that_is_away_is_no_sites_failure() -> None:
    def pull() -> list[Any]:
        raise OSError("no route")

    with pytest.raises(ConnectionError, match="the SuperLink is away"):
        exchanged(pull, superlink=False)


def test_an_error_of_flowers_is_told_by_its_code_and_not_by_its_text() -> None:
    error = SimpleNamespace(code=2, reason="\x1b[2J" + "x" * 500_000)
    found = alone(lambda: [SimpleNamespace(has_error=lambda: True, error=error)])
    assert found.detail == "its app failed (Flower's error code 2)"


@given(data=st.binary(max_size=200).map(lambda rest: MAGIC + rest) | st.binary(max_size=200))
def test_whatever_a_site_enrols_with_the_others_are_enrolled(data: bytes) -> None:
    found = GridTransport(HostileGrid(lambda: carrying(array(data))), 2).enrol(b"x", patience_s=5.0)
    assert found["node-1"] == HONEST
    assert found["node-2"] == data


def test_a_name_that_is_none_is_not_taken() -> None:
    named = pack(enrolled(site="east"))
    for name in (b"e\x1b[2", b"../e"):
        reply = named.replace(b'"east"', b'"' + name + b'"')
        assert GridTransport(HostileGrid(lambda r=reply: carrying(array(r))), 2).enrol(b"x", patience_s=5.0).keys() == {
            "node-1",
            "node-2",
        }
    assert "east" in GridTransport(HostileGrid(lambda: carrying(array(named))), 2).enrol(b"x", patience_s=5.0)
