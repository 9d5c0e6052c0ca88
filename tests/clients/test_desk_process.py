"""The desk as processes: the one with the images listens at a socket alone, the one with the port has no data."""

import asyncio
import contextlib
import os
import re
import signal
import socket as sockets
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.request import urlopen

import pytest
from hospital import SECRET
from tiny import write_study

import crossprobe
from clients.desk.desk import Desk
from clients.desk.forward import forward
from clients.desk.gate import Gate
from clients.desk.server import serving
from clients.governance.state import State
from common.errors import RunError, SiteStateError
from simulations.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "crossprobe.py"), "site"]
WAIT_S = 120.0


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def options(tmp_path: Path, pair: Sequence[Path]) -> list[str]:
    State.create(tmp_path / "state", SECRET)
    study = write_study(tmp_path / "study.yaml")
    return ["--site", str(pair[0]), "--state", str(tmp_path / "state"), "--study", str(study)]


@pytest.fixture
def desk(tmp_path: Path, pair: Sequence[Path]) -> Desk:
    return Desk(pair[0], State.create(tmp_path / "state", SECRET), write_study(tmp_path / "study.yaml"))


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], Path]]]:
    running: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> tuple[subprocess.Popen[bytes], Path]:
        output = tmp_path / f"output-{len(running)}"
        with output.open("wb") as file:
            running.append(subprocess.Popen([*COMMAND, *words], stdout=file, stderr=subprocess.STDOUT, cwd=tmp_path))
        return running[-1], output

    yield start
    for process in running:
        process.kill()
        process.wait()


def internet_sockets(pid: int) -> list[str]:
    """The sockets of a process that reach beyond this machine, as the kernel lists them."""
    own = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # an image that was closed meanwhile
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
            own |= {found[1]} if found else set()
    lines = [
        line.split()
        for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet")
        if (table := Path(f"/proc/{pid}/net/{kind}")).exists()
        for line in table.read_text().splitlines()[1:]
    ]
    return [" ".join(line) for line in lines if own & set(line)]


def test_the_socket_is_open_to_its_user_and_group_only(tmp_path: Path, desk: Desk) -> None:
    socket = tmp_path / "d.sock"
    with serving(desk, Gate(), socket):
        mode = socket.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert mode & 0o777 == 0o660
        with pytest.raises(SiteStateError, match="another process already listens"), serving(desk, Gate(), socket):
            pass
    assert not socket.exists()
    socket.write_text("kept")
    with pytest.raises(SiteStateError, match="is not a socket"), serving(desk, Gate(), socket):
        pass
    assert socket.read_text() == "kept"
    for path, words in ((tmp_path / "none" / "d.sock", "cannot listen"), (tmp_path / ("x" * 120), "bytes")):
        with pytest.raises(SiteStateError, match=words), serving(desk, Gate(), path):
            pass


def test_silent_connections_do_not_keep_the_desk_from_answering(
    tmp_path: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.desk.server._Handler.timeout", 0.5)
    with serving(desk, Gate(), tmp_path / "d.sock"):
        silent = [sockets.socket(sockets.AF_UNIX) for _ in range(24)]
        for one in silent:
            one.connect(str(tmp_path / "d.sock"))
        with sockets.socket(sockets.AF_UNIX) as browser:
            browser.settimeout(30)
            browser.connect(str(tmp_path / "d.sock"))
            browser.sendall(b"GET /desk.css HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in browser.recv(4096)
        for one in silent:
            one.close()


def test_the_process_with_the_images_has_no_internet_socket(
    tmp_path: Path, options: list[str], started: Callable[..., tuple[subprocess.Popen[bytes], Path]]
) -> None:
    socket = tmp_path / "d.sock"
    process, output = started("desk", *options, "--socket", str(socket), "--port", "8611")
    eventually(lambda: "token=" in output.read_text() or process.poll() is not None)
    assert re.search(r"http://127\.0\.0\.1:8611/\?token=[\w-]{43}\n", output.read_text())
    assert internet_sockets(process.pid) == []
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == 0
    assert not socket.exists()
    assert "Traceback" not in output.read_text()


def test_one_command_brings_the_desk_to_a_browser_by_a_second_process(
    options: list[str], started: Callable[..., tuple[subprocess.Popen[bytes], Path]]
) -> None:
    port = free_port()
    process, output = started("desk", *options, "--port", str(port))
    eventually(lambda: "token=" in output.read_text() or process.poll() is not None)
    found = re.search(r"http://127\S+", output.read_text())
    assert found, output.read_text()
    assert internet_sockets(process.pid) == []  # the port is the other process's
    assert "gave up sockets but Unix ones, other programs" in output.read_text()
    with urlopen(f"http://127.0.0.1:{port}/desk.css", timeout=WAIT_S) as page:
        assert b"--ink" in page.read()
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_S) == 0
    with sockets.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0
    assert "Traceback" not in output.read_text()


def test_a_port_that_is_taken_is_an_error_and_whoever_has_it_is_told_no_address(
    tmp_path: Path, options: list[str], started: Callable[..., tuple[subprocess.Popen[bytes], Path]]
) -> None:
    with sockets.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match="Choose another --port"):
            asyncio.run(forward(tmp_path / "d.sock", "127.0.0.1", port))
        process, output = started("desk", *options, "--port", str(port))
        assert process.wait(WAIT_S) == 1
    assert "Choose another --port" in output.read_text()
    assert "token=" not in output.read_text()


def test_the_forwarder_ends_with_the_desk_that_holds_its_input(tmp_path: Path) -> None:
    words = ["desk-forward", "--socket", str(tmp_path / "d.sock"), "--port", str(free_port()), "--for-desk"]
    with subprocess.Popen([*COMMAND, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"listening\n"
        assert process.poll() is None
        process.stdin.close()  # as when the desk is killed, or ends
        assert process.wait(WAIT_S) == 0


def test_the_forwarder_passes_bytes_both_ways_and_outlives_a_desk_that_is_gone(tmp_path: Path, desk: Desk) -> None:
    port = free_port()

    async def ask(content: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(content)
        try:
            return await asyncio.wait_for(reader.read(), WAIT_S)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    async def session() -> list[bytes]:
        started = asyncio.Event()
        task = asyncio.create_task(forward(tmp_path / "d.sock", "127.0.0.1", port, started))
        await started.wait()
        request = b"GET /desk.css HTTP/1.0\r\nHost: localhost\r\n\r\n"
        replies = [await ask(request)]
        with serving(desk, Gate(), tmp_path / "d.sock"):
            replies += [await ask(request), await ask(b"\x00\xff nonsense\r\n\r\n")]
        replies.append(await ask(request))
        task.cancel()
        return replies

    before, page, nonsense, after = asyncio.run(session())
    assert before == after == b""
    assert page.startswith(b"HTTP/1.0 200")
    assert page.rstrip().endswith(b"}")
    assert b"nonsense" not in nonsense


def test_the_forwarder_imports_nothing_that_opens_images_or_state(tmp_path: Path) -> None:
    code = (
        "import sys, clients.desk.cli, clients.desk.forward\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'PIL', 'monai', 'pydicom', 'numpy')"
        " or name.startswith(('clients.data', 'clients.governance'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_a_desk_without_its_state_folder_says_how_to_make_one(
    tmp_path: Path, pair: Sequence[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.node.jail.enter", lambda **_: [])  # it would hold the tests' own process
    words = ["site", "desk", "--site", pair[0], "--state", tmp_path / "none", "--study", tmp_path]
    words += ["--port", free_port()]
    assert crossprobe.main([str(word) for word in words]) == 1
    assert "crossprobe site init" in capsys.readouterr().err
