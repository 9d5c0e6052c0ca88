"""Nobody in a federation is trusted: another study, poisoned replies, old requests. Minutes: `make fault-test`."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from disks import MOUNTS, full, small_disk
from federation import Federation
from processes import wait_until
from tiny import content, refusal, request, write_study

from clients.governance.ledger import verify
from clients.governance.state import State
from clients.node.channel import METHOD, SERVICE, address, ask, options
from common.components import Tensors
from common.messages import TaskReply, TaskRequest, digest, pack, unpack
from common.run_folder import RunFolder
from common.signing import seal, unseal
from common.study import load_study
from simulations.processes import listens

pytestmark = pytest.mark.faults

ROUNDS = 9
#: A worker with a full disk refuses by one of these, whichever file it could not write.
NOT_WRITABLE = ("ledger-unwritable", "state-failed")


def tensors_with(change: Callable[[Tensors], Tensors], reply: bytes) -> bytes:
    header, tensors = unpack(reply)
    return pack(header, change(tensors))


def of_another_study(reply: bytes) -> bytes:
    header, tensors = unpack(reply)
    return pack(header.model_copy(update={"study": "0" * 64}), tensors)


#: For each round what becomes of a reply, and the code by which the server must refuse it; the last is in `Poisoner`.
POISONS: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("cut short", lambda reply: reply[:-100], "bad-tensors"),
    ("wrong shape", partial(tensors_with, lambda t: {name: x[None] for name, x in t.items()}), "wrong-shape"),
    ("NaN", partial(tensors_with, lambda t: {name: x * np.float32(np.nan) for name, x in t.items()}), "not-finite"),
    ("scaled", partial(tensors_with, lambda t: {name: x * np.float32(1e6) for name, x in t.items()}), "absurd-norm"),
    ("of another study", of_another_study, "other-request"),
]
OLD_ROUND = len(POISONS)
ALTERED = OLD_ROUND + 1


@dataclass
class Poisoner:
    """Sits at a site's socket in front of its worker, keeps what passes and changes the replies of the first rounds.

    It is the site itself and signs what it changes, but in the round `ALTERED`: then it lies in between.
    """

    worker: Path
    key: Ed25519PrivateKey
    requests: list[bytes] = field(default_factory=list)
    replies: list[bytes] = field(default_factory=list)

    @contextlib.contextmanager
    def at(self, socket: Path) -> Iterator[None]:
        server = grpc.server(ThreadPoolExecutor(2), options=options())
        handler = grpc.unary_unary_rpc_method_handler(lambda payload, _: self.answer(payload))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        server.add_insecure_port(address(socket))
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()

    def answer(self, payload: bytes) -> bytes:
        reply = ask(self.worker, payload, 120)
        header, _ = unpack(unseal(payload).payload)
        if not isinstance(header, TaskRequest):
            return reply
        self.requests.append(payload)
        self.replies.append(reply)
        if header.round < OLD_ROUND:
            return seal(POISONS[header.round][1](unseal(reply).payload), self.key, "reply")
        if header.round == ALTERED:
            return reply[:-1] + bytes([reply[-1] ^ 1])
        return self.replies[-2] if header.round == OLD_ROUND else reply


@dataclass
class Outcome:
    """What was left of a run in which `south` poisons its replies and `west` had a full disk for a while.

    Attributes:
        other: what became of the run of a study that nobody approved.
        answered: what the sites answered to another study's task, last of all.
        again: what `south`'s worker replied to its last request and to an old one when they came again.
    """

    federation: Federation
    poisoner: Poisoner
    other: subprocess.CompletedProcess[str]
    run: tuple[int, str]
    answered: dict[str, bytes]
    again: tuple[bytes, bytes]


@pytest.fixture(scope="module")
def outcome(four: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    root = tmp_path_factory.mktemp("trust")
    stages = [
        stage | {"rounds": ALTERED if stage["name"] == "refine" else 1}
        for stage in content()["stages"]
        if stage["name"] in ("pretrain", "refine")
    ]
    study = write_study(root / "study.yaml", stages=stages)
    with Federation(root, study, four) as federation, contextlib.ExitStack() as around:
        if MOUNTS:
            around.enter_context(small_disk(federation.kits / "west" / "state", 8))
        key = State(federation.kits / "south" / "state").signing_key()
        poisoner = Poisoner(federation.sockets["south"].with_name("real.sock"), key)
        around.enter_context(poisoner.at(federation.sockets["south"]))
        federation.start_coordinator()
        federation.register()
        federation.start("south", "worker", {str(federation.sockets["south"]): str(poisoner.worker)})
        federation.start("south", "supernode")
        federation.start_sites("north", "east", "west")
        wait_until(lambda: listens(federation.ports["south"]) and poisoner.worker.exists(), "south is there")
        federation.start("south", "superexec")

        file = write_study(federation.coordinator / "study" / "other.yaml", seed=1, stages=stages)
        other = federation.console("study", "run", str(file), "--out", str(federation.run_folder.parent / "other"))
        with federation.running() as running:
            wait_until(federation.records, "the first round", 120)
            with full(federation.kits / "west" / "state") if MOUNTS else contextlib.nullcontext():
                asked = len(federation.records())
                wait_until(lambda: len(federation.records()) > asked + 1, "two rounds", 120)
            run = (running.wait(240), federation.said.read_text())
        assert run[0] == 0, f"{run[1]}\n{federation.logs()}"
        unapproved = load_study(file)
        answered = {
            name: ask(federation.sockets[name], request(unapproved, "pretrain", role), 30)
            for name, role in (("north", "source"), ("east", "target"))
        }
        again = (ask(poisoner.worker, poisoner.requests[-1], 30), ask(poisoner.worker, poisoner.requests[2], 30))
        yield Outcome(federation, poisoner, other, run, answered, again)


def test_a_study_that_no_site_approved_is_not_run_and_the_coordinator_told_what_to_do(outcome: Outcome) -> None:
    assert outcome.other.returncode == 1
    said = " ".join((outcome.other.stdout + outcome.other.stderr).split())
    assert "needs 1 source site(s), found 0" in said
    for name in outcome.federation.names:
        assert f"{name}: not-approved: this site has not approved the study" in said
    assert "approve the missing sites, then start again" in said
    assert "Traceback" not in said


def test_a_worker_refuses_another_study_by_its_hash_and_says_nothing_more(outcome: Outcome) -> None:
    for name, reply in outcome.answered.items():
        said = refusal(reply)
        assert (said.code, said.ledger_head) == ("not-approved", None)
        asked, out = outcome.federation.ledger(name)[-2:]
        assert asked["study"] == out["study"] != load_study(outcome.federation.study).hash()
        assert out["refusal"] == "not-approved"


@pytest.mark.parametrize(
    ("index", "code"),
    [*((index, code) for index, (_, _, code) in enumerate(POISONS)), (OLD_ROUND, "other-request")],
    ids=[*(name for name, _, _ in POISONS), "of the round before"],
)
def test_a_poisoned_reply_is_refused_and_named(index: int, code: str, outcome: Outcome) -> None:
    record = outcome.federation.records()[index]
    assert (record.round, record.counted) == (index, True)
    assert record.sites["south"].status == "refused"
    assert code in record.sites["south"].detail
    assert f"round {index} " in outcome.run[1]
    assert {record.sites[name].status for name in ("north", "east")} == {"ok"}


def test_a_reply_that_was_altered_on_its_way_fails_and_is_named(outcome: Outcome) -> None:
    south = outcome.federation.records()[ALTERED].sites["south"]
    assert (south.status, south.detail.partition(":")[0]) == ("failed", "bad-signature")


def test_a_site_that_poisons_no_longer_counts_again(outcome: Outcome) -> None:
    later = outcome.federation.records()[ALTERED + 1 :]
    assert [record.sites["south"].status for record in later] == ["ok"] * (ROUNDS - ALTERED - 1)


def test_the_model_is_that_of_a_run_without_what_was_refused(outcome: Outcome, tmp_path: Path) -> None:
    assert len(outcome.federation.records()) == ROUNDS
    model = RunFolder(outcome.federation.run_folder).model.read_bytes()
    assert model == outcome.federation.undisturbed(tmp_path)


def test_a_request_that_comes_again_gets_the_reply_that_left_before(outcome: Outcome) -> None:
    again, _ = outcome.again
    assert isinstance(unpack(unseal(again).payload)[0], TaskReply)
    assert again == outcome.poisoner.replies[-1]


def test_an_old_request_is_refused(outcome: Outcome) -> None:
    assert refusal(unseal(outcome.again[1]).payload).code == "old-round"


def test_the_ledger_tells_both(outcome: Outcome) -> None:
    lines = outcome.federation.ledger("south")[-4:]
    requests, replies = outcome.poisoner.requests, outcome.poisoner.replies
    expected = [
        ("in", digest(unseal(requests[-1]).payload), None),
        ("out", digest(unseal(replies[-1]).payload), None),
        ("in", digest(unseal(requests[2]).payload), None),
        ("out", digest(unseal(outcome.again[1]).payload), "old-round"),
    ]
    assert [(line["direction"], line["sha256"], line["refusal"]) for line in lines] == expected


@pytest.mark.skipif(not MOUNTS, reason="needs root to mount a file system")
def test_a_site_whose_disk_is_full_lets_nothing_leave_and_is_back_once_there_is_room(outcome: Outcome) -> None:
    records = outcome.federation.records()
    refused = [record.round for record in records if record.sites["west"].status == "refused"]
    assert 0 < len(refused) < ROUNDS - 2
    for index in refused:
        assert records[index].sites["west"].detail.startswith(NOT_WRITABLE)
        assert records[index].sites["west"].bytes_from < 1000
    assert records[0].sites["west"].status == records[-1].sites["west"].status == "ok"
    assert not verify(outcome.federation.kits / "west" / "state" / "ledger.jsonl").damage
