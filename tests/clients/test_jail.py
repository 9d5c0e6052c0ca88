"""A worker that something has taken over: what it then still can do."""

import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from clients.node import jail

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() not in jail._CALLS, reason="closes nothing here"
)


def inside(tmp_path: Path, code: str) -> str:
    """What code prints that runs after the process gave up its rights, with a site to read and a state to write."""
    for name in ("site", "state", "elsewhere"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "file").write_text("content", encoding="utf-8")
    begin = f"""
        import os, socket, subprocess, sys, threading
        from pathlib import Path
        from clients.node import jail
        jail._temporary = lambda: [Path("/dev")]  # the tests' own folder lies below /tmp
        root = Path({str(tmp_path)!r})
        assert jail.enter(reads=[root / "site"], writes=[root / "state"]) == []
        def tried(what):
            try:
                return what() or "done"
            except BaseException as error:
                return type(error).__name__
    """
    script = textwrap.dedent(begin) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "attempt",
    [
        'socket.create_connection(("127.0.0.1", 80), timeout=1)',
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_INET6)",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        'socket.getaddrinfo("example.org", 80)',
        'subprocess.run(["/bin/true"])',
        'os.execv("/bin/true", ["true"])',
        'open(root / "elsewhere" / "file").read()',
        'os.listdir(root / "elsewhere")',
        'open(root / "elsewhere" / "new", "w")',
        'open(root / "site" / "file", "w")',
        'os.unlink(root / "site" / "file")',
        'os.truncate(root / "site" / "file", 0)',
        'os.rename(root / "site" / "file", root / "state" / "moved")',
        'open(Path.home() / ".bashrc").read()',
        'open("/proc/1/environ").read()',
        "os.kill(os.getppid(), 0)",
    ],
)
def test_what_a_worker_never_needs_it_cannot_do(tmp_path: Path, attempt: str) -> None:
    said = inside(tmp_path, f"print(tried(lambda: {attempt}))")
    assert said in ("PermissionError", "gaierror", "OSError")
    assert (tmp_path / "site" / "file").read_text(encoding="utf-8") == "content"


def test_without_the_jail_the_same_attempts_succeed(tmp_path: Path) -> None:
    # else the test above would pass on a machine where nothing works
    code = "import socket, subprocess; socket.socket(socket.AF_INET); print(subprocess.run(['/bin/true']).returncode)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_a_thread_is_held_as_well_and_a_child_too(tmp_path: Path) -> None:
    said = inside(
        tmp_path,
        """
        found = []
        thread = threading.Thread(target=lambda: found.append(tried(lambda: socket.socket(socket.AF_INET))))
        thread.start(); thread.join()
        child = os.fork()
        if child == 0:
            os._exit(tried(lambda: open(root / "elsewhere" / "file").read()) == "PermissionError")
        print(found[0], os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
    )
    assert said == "PermissionError 1"


def test_other_ways_to_a_socket_are_closed_too(tmp_path: Path) -> None:
    number = {"x86_64": (41, 425, 101), "aarch64": (198, 425, 117)}[platform.machine()]
    said = inside(
        tmp_path,
        f"""
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        ring = ctypes.create_string_buffer(120)
        for call, *words in (({number[0]}, 2, 1, 0), ({number[1]}, 8, ring), ({number[2]}, 16, 1)):
            print(libc.syscall(call, *words), errno.errorcode[ctypes.get_errno()])
        if {platform.machine() == "x86_64"}:
            print(libc.syscall(0x40000000 + 41, 2, 1, 0), errno.errorcode[ctypes.get_errno()])  # the x32 convention
        """,
    )
    assert set(said.splitlines()) == {"-1 EPERM"}


def test_what_it_needs_it_can_still_do(tmp_path: Path) -> None:
    said = inside(
        tmp_path,
        """
        import numpy, torch
        print(open(root / "site" / "file").read(), os.listdir(root / "site"))
        Path(root / "state" / "new").write_text("x"); os.replace(root / "state" / "new", root / "state" / "newer")
        own, other = socket.socketpair()
        listener = socket.socket(socket.AF_UNIX); listener.bind(str(root / "state" / "s")); listener.listen()
        torch.manual_seed(0)
        print(bool(torch.nn.functional.conv2d(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 3, 3)).isfinite().all()))
        print(len(os.urandom(8)))
        """,
    )
    assert said.splitlines() == ["content ['file']", "True", "8"]


def test_no_core_file_and_no_more_memory_than_the_machine_has(tmp_path: Path) -> None:
    said = inside(
        tmp_path,
        """
        import resource
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        print(resource.getrlimit(resource.RLIMIT_CORE)[0], resource.getrlimit(resource.RLIMIT_DATA)[0] <= memory)
        print(tried(lambda: len(bytearray(memory + 1))))
        """,
    )
    assert said.splitlines() == ["0 True", "MemoryError"]


def test_what_could_not_be_closed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import os, threading
        from clients.node import jail
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        jail._CALLS = {}
        jail._landlock = lambda *_: ["no Landlock"]
        print(*jail.enter(reads=[], writes=[]), sep="\\n")
        os._exit(0)
    """
    done = subprocess.run(
        [sys.executable, "-uc", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    threads, landlock, seccomp = done.stdout.splitlines()
    assert "had threads before" in threads
    assert landlock == "no Landlock"
    assert "no filter of system calls for" in seccomp
    monkeypatch.setattr(sys, "platform", "darwin")
    assert jail.enter(reads=[], writes=[]) == [
        "this process cannot give up its rights on darwin; keep it from networks yourself"
    ]
    assert os.getpid() > 0


def taken_over(tmp_path: Path, words: list[str], attempts: dict[str, str]) -> dict[str, str]:
    """What comes of attempts of a command once it gave up its rights: `done`, or the name of an error."""
    for name in ("site", "state", "study", "models", "archive", "run", "log", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("content", encoding="utf-8")
    code = f"""
        import os, socket, subprocess
        import crossprobe
        from clients.node import jail
        jail._temporary = lambda: [Path("/dev")]  # the tests' own folder lies below /tmp
        enter = jail.enter
        def entered(**folders):
            assert enter(**folders) == []
            for name, attempt in {attempts!r}.items():
                try:
                    eval(attempt)
                    print(name, "done")
                except OSError as error:
                    print(name, type(error).__name__)
            os._exit(0)
        jail.enter = entered
        crossprobe.main({words!r})
    """
    done = subprocess.run(
        [sys.executable, "-uc", "from pathlib import Path\n" + textwrap.dedent(code)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


def test_a_worker_that_was_taken_over_reaches_nothing_beside_its_socket_and_its_witness(tmp_path: Path) -> None:
    words = ["worker", "--site", "site", "--state", "state", "--socket", "run/w.sock", "--witness", "log/heads"]
    attempts = {
        "read beside the socket": 'open("run/file").read()',
        "change beside the socket": 'open("run/file", "a")',
        "write beside the socket": 'open("run/new", "w")',
        "look around the socket": 'os.listdir("run")',
        "read beside the witness": 'open("log/file").read()',
        "change beside the witness": 'open("log/file", "a")',
        "write beside the witness": 'open("log/new", "w")',
        "put another in its place": 'os.rename("log/heads", "log/old")',
        "tell the witness": 'open("log/heads", "a").write("x")',
        "listen": 'socket.socket(socket.AF_UNIX).bind("run/w.sock")',
        "stop listening": 'os.unlink("run/w.sock")',
    }
    allowed = {"tell the witness", "listen", "stop listening"}
    found = taken_over(tmp_path, words, attempts)
    assert found == {name: "done" if name in allowed else "PermissionError" for name in attempts}


def test_a_desk_that_was_taken_over_reaches_no_network_no_program_and_no_other_file(tmp_path: Path) -> None:
    words = ["site", "desk", "--socket", "run/d.sock", "--study", "study", "--site", "site", "--state", "state"]
    words += ["--models", "models", "--predictions", "kept", "--images", "archive"]
    attempts = {
        "network": 'socket.create_connection(("127.0.0.1", 80), timeout=1)',
        "program": 'subprocess.run(["/bin/true"])',
        "signal": "os.kill(os.getppid(), 0)",
        "read elsewhere": 'open("elsewhere/file").read()',
        "change an image": 'open("site/file", "w")',
        "change a study": 'open("study/file", "w")',
        "change a model": 'open("models/file", "w")',
        "change the archive": 'os.unlink("archive/file")',
        "link to elsewhere": 'os.symlink(os.path.abspath("elsewhere/file"), "kept/link") or open("kept/link").read()',
        "keep": 'open("kept/file", "w").write("x")',
        "write the state": 'open("state/new", "w").write("x")',
        "read a study": 'open("study/file").read()',
        "write beside the socket": 'open("run/new", "w")',
        "listen": 'socket.socket(socket.AF_UNIX).bind("run/d.sock")',
    }
    found = taken_over(tmp_path, words, attempts)
    allowed = {"keep", "write the state", "read a study", "listen"}
    assert found == {name: "done" if name in allowed else "PermissionError" for name in attempts}
