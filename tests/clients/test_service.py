"""The worker's process behind its socket: real gRPC, real signals, and nothing that crashes it."""

import contextlib
import os
import signal
import socket as sockets
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hospital import Hospital, Stub, done, hospital
from tiny import one_stage, refusal, request, study

import crossprobe
from clients.data.site import Site
from clients.governance.state import State
from clients.learning.training import TaskContext
from clients.node.channel import MAX_SOCKET_PATH, address, answers, ask
from clients.node.service import serving
from common.errors import SiteStateError
from common.messages import EnrolReply, EnrolRequest, pack, unpack

STUDY = study()
PRETRAIN, ADAPT = request(STUDY, "pretrain", "source"), request(STUDY, "adapt", "source")
ENROL = pack(EnrolRequest(study=STUDY.hash()))
WAIT_S = 20.0


@pytest.fixture
def socket(tmp_path: Path, north: Hospital) -> Iterator[Path]:
    with serving(north.worker, tmp_path / "w.sock"):
        yield tmp_path / "w.sock"


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_message_goes_through_the_socket_byte_by_byte(socket: Path, north: Hospital, stub: Stub) -> None:
    assert isinstance(unpack(ask(socket, ENROL, WAIT_S))[0], EnrolReply)
    reply = ask(socket, PRETRAIN, WAIT_S)
    assert done(unpack(reply)[0]).round == 0
    assert north.state.answered(STUDY.hash()).reply == reply
    assert ask(socket, PRETRAIN, WAIT_S) == reply


def test_the_socket_is_open_to_its_user_and_group_only(socket: Path) -> None:
    mode = socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert mode & 0o777 == 0o660


def test_malformed_messages_are_refused_and_the_worker_goes_on(socket: Path, stub: Stub) -> None:
    for payload in (b"", b"\0" * 100, PRETRAIN[:-1], b"XPRB" + b"\xff" * 8):
        assert refusal(ask(socket, payload, WAIT_S)).code in ("not-a-message", "bad-tensors", "not-canonical")
    assert done(unpack(ask(socket, PRETRAIN, WAIT_S))[0]).round == 0


def test_a_message_of_more_than_4_mib_passes_and_an_oversized_one_is_refused(
    tmp_path: Path, north: Hospital, stub: Stub
) -> None:
    big = pack(EnrolRequest(study=STUDY.hash()), {"a": np.zeros(2_000_000, np.float32)})
    with serving(north.worker, tmp_path / "w.sock"):
        assert isinstance(unpack(ask(tmp_path / "w.sock", big, WAIT_S))[0], EnrolReply)
    with serving(north.worker, tmp_path / "w.sock", max_bytes=1_000_000):
        assert refusal(ask(tmp_path / "w.sock", big, WAIT_S)).code == "too-large"
        assert done(unpack(ask(tmp_path / "w.sock", PRETRAIN, WAIT_S))[0]).round == 0


class Held:
    """Makes a task wait until it is let go or cancelled."""

    def __init__(self, stub: Stub) -> None:
        self.started, self.go, self.cancelled = threading.Event(), threading.Event(), threading.Event()
        stub.during = self.wait

    def wait(self, context: TaskContext) -> None:
        self.started.set()
        while not self.go.wait(0.02):
            if context.cancelled():
                self.cancelled.set()
                return


def in_background(call: Callable[[], bytes]) -> tuple[threading.Thread, list[bytes]]:
    replies: list[bytes] = []
    thread = threading.Thread(target=lambda: replies.append(call()))
    thread.start()
    return thread, replies


def test_a_second_task_meets_busy_while_enrolments_are_answered(socket: Path, stub: Stub) -> None:
    held = Held(stub)
    thread, replies = in_background(lambda: ask(socket, PRETRAIN, WAIT_S))
    assert held.started.wait(WAIT_S)
    assert refusal(ask(socket, ADAPT, WAIT_S)).code == "busy"
    assert isinstance(unpack(ask(socket, ENROL, WAIT_S))[0], EnrolReply)
    held.go.set()
    thread.join()
    assert done(unpack(replies[0])[0]).round == 0
    assert done(unpack(ask(socket, ADAPT, WAIT_S))[0]).round == 1
    assert stub.ran == ["supervise"] * 2


def test_a_task_stops_when_its_caller_is_gone_or_out_of_time(socket: Path, stub: Stub) -> None:
    held = Held(stub)
    assert refusal(ask(socket, PRETRAIN, 0.5)).code == "worker-timeout"
    assert held.cancelled.wait(WAIT_S)
    held.go.set()
    eventually(lambda: refusal_or_ok(ask(socket, PRETRAIN, WAIT_S)) == "ok")


def refusal_or_ok(reply: bytes) -> str:
    return getattr(unpack(reply)[0], "code", "ok")


def test_a_task_stops_when_the_worker_stops(tmp_path: Path, north: Hospital, stub: Stub) -> None:
    held = Held(stub)
    with serving(north.worker, tmp_path / "w.sock"):
        thread, replies = in_background(lambda: ask(tmp_path / "w.sock", PRETRAIN, WAIT_S))
        assert held.started.wait(WAIT_S)
    thread.join()
    assert held.cancelled.is_set()
    assert refusal_or_ok(replies[0]) in ("ok", "cancelled", "worker-unreachable")
    assert not (tmp_path / "w.sock").exists()


def test_a_second_server_at_the_socket_or_on_the_state_is_refused(socket: Path, north: Hospital) -> None:
    with pytest.raises(SiteStateError, match="another process already listens"), serving(north.worker, socket):
        pass
    with (
        north.state.locked(),
        pytest.raises(SiteStateError, match="another worker already uses"),
        State(north.state.folder).locked(),
    ):
        pass
    assert isinstance(unpack(ask(socket, ENROL, WAIT_S))[0], EnrolReply)


def test_nothing_that_others_lay_beside_the_socket_is_followed_or_holds_it_up(tmp_path: Path, north: Hospital) -> None:
    """In a folder where others may write, such as /tmp, a worker that followed a link would spoil its target."""
    (tmp_path / "victim").write_text("precious")
    for name in ("w.sock.lock", ".w.sock.lock"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    with serving(north.worker, tmp_path / "w.sock"):
        assert isinstance(unpack(ask(tmp_path / "w.sock", ENROL, WAIT_S))[0], EnrolReply)
    assert (tmp_path / "victim").read_text() == "precious"
    (tmp_path / "w.sock").symlink_to(tmp_path / "victim")
    with pytest.raises(SiteStateError, match="is not a socket"), serving(north.worker, tmp_path / "w.sock"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_the_states_lock_lies_in_a_closed_folder_and_follows_no_link(tmp_path: Path, north: Hospital) -> None:
    lock = north.state.folder / "lock"
    assert north.state.folder.stat().st_mode & 0o777 == 0o700
    lock.unlink(missing_ok=True)
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SiteStateError, match="cannot make the lock file"), north.state.locked():
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_path_that_is_too_long_taken_or_nowhere_is_named(tmp_path: Path, north: Hospital) -> None:
    long = tmp_path / ("x" * (MAX_SOCKET_PATH - len(str(tmp_path))))
    with pytest.raises(SiteStateError, match="108 bytes, the kernel allows 107"):
        address(long)
    assert address(Path(str(long)[:-1]))
    assert refusal(ask(long, ENROL, 1.0)).code == "worker-unreachable"
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(SiteStateError, match="is not a socket"), serving(north.worker, tmp_path / "notes"):
        pass
    assert (tmp_path / "notes").read_text() == "mine"
    with (
        pytest.raises(SiteStateError, match="nobody-here"),
        serving(north.worker, tmp_path / "w.sock", group="nobody-here"),
    ):
        pass


def test_a_worker_that_is_down_gives_a_refusal_in_time(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert refusal(ask(tmp_path / "none.sock", ENROL, WAIT_S, connect_s=0.3)).code == "worker-unreachable"
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    assert refusal(ask(tmp_path / "dead.sock", ENROL, WAIT_S, connect_s=0.3)).code == "worker-unreachable"
    with sockets.socket(sockets.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute.sock"))
        mute.listen()
        assert refusal(ask(tmp_path / "mute.sock", ENROL, 0.5)).code in ("worker-timeout", "worker-unreachable")
    with contextlib.ExitStack() as waiting, sockets.socket(sockets.AF_UNIX) as full:
        full.bind(str(tmp_path / "full.sock"))
        full.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:  # until no more fit
                client = waiting.enter_context(sockets.socket(sockets.AF_UNIX))
                client.setblocking(False)
                client.connect(str(tmp_path / "full.sock"))
        assert refusal(ask(tmp_path / "full.sock", ENROL, 0.5)).code in ("worker-timeout", "worker-unreachable")
    assert time.monotonic() - begun < 10


#: Long enough to be killed in: each step takes milliseconds.
LONG = one_stage(
    source={"task": "supervise", "trains": ["source_branch"], "steps": 100_000, "learning_rate": 5e-6}, rounds=2
)


@pytest.fixture
def process(tmp_path: Path, pair: Sequence[Path]) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts the command `crossprobe worker` and waits until it answers."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, crossprobe.__file__, "worker", "--site", str(pair[0])]
        command += ["--state", str(tmp_path / "state"), "--socket", str(tmp_path / "w.sock")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        eventually(lambda: answers(tmp_path / "w.sock", 0.2))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()


def test_a_worker_killed_in_mid_task_is_a_clean_refusal_and_works_again_after_its_restart(
    tmp_path: Path, site: Site, process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    north = hospital(tmp_path / "state", site, STUDY, LONG)
    socket = tmp_path / "w.sock"
    first = process()
    thread, replies = in_background(lambda: ask(socket, request(LONG, "only", "source"), WAIT_S, connect_s=1.0))
    eventually(lambda: len(north.ledger()) == 1)
    time.sleep(0.3)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    thread.join()
    assert refusal(replies[0]).code == "worker-unreachable"
    assert socket.exists()

    second = process()
    assert done(unpack(ask(socket, PRETRAIN, WAIT_S))[0]).round == 0
    assert [e["direction"] for e in north.ledger()] == ["in", "in", "out"]
    second.send_signal(signal.SIGTERM)
    assert second.wait(WAIT_S) == 0
    assert not socket.exists()


def test_the_command_checks_its_folders_before_it_serves(
    tmp_path: Path, pair: Sequence[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.node.jail.enter", lambda **_: [])  # it would hold the tests' own process

    def run(*words: str | Path) -> int:
        return crossprobe.main(["worker", *map(str, words)])

    assert run("--check", "--socket", tmp_path / "w.sock") == 1
    assert "nobody answers" in capsys.readouterr().err
    assert run("--socket", tmp_path / "w.sock", "--site", pair[0], "--state", tmp_path) == 1
    assert "crossprobe site init" in capsys.readouterr().err
    State.create(tmp_path / "state")
    (tmp_path / "empty").mkdir()
    assert run("--socket", tmp_path / "w.sock", "--site", tmp_path / "empty", "--state", tmp_path / "state") == 1
    shown = capsys.readouterr().err
    assert "missing-site-yaml" in shown
    assert "missing-manifest" in shown
