"""The ledger: what was changed, removed or moved is found; what was cut off, only against a head."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import crossprobe
from clients.governance.ledger import FIRST, Ledger, entry, read, verify
from clients.governance.state import State
from common.messages import EnrolRequest, Message, Refusal, TaskReply, TaskRequest, digest, pack

HASH = "ab" * 32
TENSORS = {"projector/out.bias": np.zeros(3, np.float32)}
REQUEST = TaskRequest(study=HASH, round=3, stage="refine", task="self_train")
REPLY = TaskReply(study=HASH, round=3, stage="refine", task="self_train", request=HASH, metrics={"loss": 0.5})
LINES = 6


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append(entry("in", b"x"))
    ledger.append(entry("out", Message.of(Refusal(code="not-approved", message="no"))))
    ledger.append(entry("in", Message.of(EnrolRequest(study=HASH))))
    ledger.append(entry("in", Message.of(REQUEST, TENSORS)))
    ledger.append(entry("out", Message.of(REPLY, TENSORS), REQUEST))
    head = ledger.append(entry("out", Message.of(Refusal(code="busy", message="no")), REQUEST))
    assert Ledger(path).head == head == verify(path).head
    return path.read_bytes()


def test_a_line_cannot_be_guessed_from_its_head(written: bytes) -> None:
    """Else a coordinator who has two heads could try each count of patients that the line between may hold."""
    salts = [json.loads(line)["salt"] for line in written.splitlines()]
    assert len(set(salts)) == LINES
    assert all(len(bytes.fromhex(salt)) == 16 for salt in salts)


def damaged(tmp_path: Path, content: bytes, head: str | None = None) -> bool:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(content)
    return bool(verify(path, head).damage)


def heads(content: bytes) -> list[str]:
    lines = content.splitlines()
    assert len(lines) == LINES
    return [digest(line) for line in lines]


def test_a_ledger_as_written_verifies_against_each_of_its_heads(written: bytes, tmp_path: Path) -> None:
    assert not damaged(tmp_path, written)
    for number, head in enumerate(heads(written), 1):
        verdict = verify(tmp_path / "ledger.jsonl", head)
        assert (verdict.damage, verdict.proven, verdict.lines) == ((), number, LINES)


def test_the_first_line_follows_64_zeros_and_each_other_the_line_before(written: bytes) -> None:
    entries = [json.loads(line) for line in written.splitlines()]
    assert [e["prev"] for e in entries] == [FIRST, *heads(written)[:-1]]


@given(place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_any_changed_byte_is_found(place: int, flip: int, written: bytes, tmp_path: Path) -> None:
    changed = bytearray(written)
    changed[place % len(written)] ^= flip
    assert damaged(tmp_path, bytes(changed))


@given(number=st.integers(0, LINES - 2))
def test_a_removed_line_is_found(number: int, written: bytes, tmp_path: Path) -> None:
    lines = written.splitlines(keepends=True)
    assert damaged(tmp_path, b"".join(lines[:number] + lines[number + 1 :]))


@given(order=st.permutations(range(LINES)))
def test_lines_in_another_order_are_found(order: list[int], written: bytes, tmp_path: Path) -> None:
    lines = written.splitlines(keepends=True)
    assert damaged(tmp_path, b"".join(lines[i] for i in order)) == (order != sorted(order))


@given(number=st.integers(0, LINES - 1), place=st.integers(0, LINES))
def test_a_line_that_is_there_twice_is_found(number: int, place: int, written: bytes, tmp_path: Path) -> None:
    lines = written.splitlines(keepends=True)
    assert damaged(tmp_path, b"".join([*lines[:place], lines[number], *lines[place:]]))


@given(kept=st.integers(0, LINES - 1))
def test_a_cut_tail_is_found_only_with_a_head_of_what_was_cut(kept: int, written: bytes, tmp_path: Path) -> None:
    cut = b"".join(written.splitlines(keepends=True)[:kept])
    assert not damaged(tmp_path, cut)
    for number, head in enumerate(heads(written), 1):
        assert damaged(tmp_path, cut, head) == (number > kept)


def test_a_line_cut_in_the_middle_is_found(written: bytes, tmp_path: Path) -> None:
    for cut in (1, 2, 20):
        assert damaged(tmp_path, written[:-cut])


def test_a_file_written_anew_is_found_only_with_a_head(written: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    ledger = Ledger(path)
    for _ in range(LINES):
        ledger.append(entry("in", b"nothing to see"))
    assert not damaged(tmp_path, path.read_bytes())
    assert all(damaged(tmp_path, path.read_bytes(), head) for head in heads(written))


def test_an_entry_tells_what_was_in_the_message() -> None:
    payload = pack(REPLY, TENSORS)
    found = entry("out", Message.of(REPLY, TENSORS))
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "direction": "out",
        "kind": "done",
        "study": HASH,
        "start": None,
        "round": 3,
        "task": "self_train",
        "tensors": {"projector/out.bias": [3]},
        "bytes": len(payload),
        "sha256": digest(payload),
        "metrics": {"loss": 0.5},
        "epsilon": None,
        "charges": None,
        "refusal": None,
        "accountant": None,
        "cohorts": None,
        "unwritten": 0,
    }


def test_a_strange_tensor_name_in_a_request_is_not_written_down() -> None:
    strange = {"\x1b[2J": np.zeros(1), "a" * 200: np.zeros(1), "projector/out.bias": np.zeros(1)}
    assert list(entry("in", Message(REQUEST, strange, b""))["tensors"]) == ["projector/out.bias"]


def test_the_numbers_of_a_reply_that_comes_in_are_not_written_down() -> None:
    assert entry("in", Message.of(REPLY.model_copy(update={"metrics": {"[/x]": 1.0}})))["metrics"] == {}


@pytest.mark.parametrize("torn", [b"", b'{"time"', b"x" * 200_000])
def test_a_last_line_that_was_cut_short_is_dropped_however_long(torn: bytes, written: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(written + torn)
    Ledger(path)
    assert path.read_bytes() == written


@pytest.fixture
def state(written: bytes, tmp_path: Path) -> Path:
    State.create(tmp_path / "state").ledger.write_bytes(written)
    return tmp_path / "state"


def run(*words: str | Path) -> int:
    return crossprobe.main(["ledger", *map(str, words)])


def test_the_command_says_what_it_cannot_tell_without_a_head(
    state: Path, written: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", "--state", state) == 0
    assert "cannot be told without a head" in capsys.readouterr().out
    assert run("verify", "--state", state, "--head", heads(written)[3]) == 0
    assert "Lines 1 to 4" in capsys.readouterr().out


def test_the_command_finds_damage_with_its_line_and_exits_1(
    state: Path, written: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = written.splitlines(keepends=True)
    (state / "ledger.jsonl").write_bytes(b"".join(lines[:-2]))
    assert run("verify", "--state", state, "--head", heads(written)[-1]) == 1
    assert "end was cut off, or the file was rewritten" in capsys.readouterr().err
    (state / "ledger.jsonl").write_bytes(b"".join(lines[:2] + lines[3:]))
    assert run("verify", "--state", state, "--json") == 1
    assert json.loads(capsys.readouterr().out)["damage"][0]["line"] == 3


def test_show_tells_what_left_and_when(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "--state", state) == 0
    shown = capsys.readouterr().out
    for word in ("OUT", "self_train", "projector", "loss 0.5", "not-approved", "sent: 3 messages"):
        assert word in shown
    assert run("show", "--state", state, "--study", HASH[:8], "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 4
    assert len(list(read(state / "ledger.jsonl"))) == LINES


def test_show_prints_names_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = State.create(tmp_path / "state")
    Ledger(state.ledger).append(entry("out", Message.of(REPLY.model_copy(update={"metrics": {"[/x]": 1.0}}))))
    assert run("show", "--state", state.folder) == 0
    assert "[/x] 1" in capsys.readouterr().out


def test_show_of_a_damaged_ledger_says_so(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = state / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"loss":0.5', b'"loss":0.4'))
    assert run("show", "--state", state) == 1
    assert "damaged" in capsys.readouterr().err


def test_show_as_json_of_a_damaged_ledger_says_so_too(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = state / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"loss":0.5', b'"loss":0.4'))
    assert run("show", "--state", state, "--json") == 1
    found = capsys.readouterr()
    assert json.loads(found.out)
    assert "damaged" in found.err
