"""What a worker says of where it runs, and that two state folders do not share one site's folder."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from federation import NAMESPACES

from clients.node.surroundings import alone_on, networks, surroundings
from common.errors import SiteStateError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, pair: tuple[Path, Path]) -> Path:
    return Path(shutil.copytree(pair[0], tmp_path / "north"))


def test_network_root_and_a_writable_folder_are_each_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (3, "wlan0"), (2, "eth0")])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) == (folder, os.W_OK))
    network, root, writable = surroundings(folder, networks())
    assert "has a network (eth0, wlan0) and needs none" in network
    assert "runs as root" in root
    assert f"can write to {folder}" in writable


def test_what_a_jail_took_away_is_not_told_and_an_engine_is(folder: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine.sock"
    engine.touch()
    code = f"""
from pathlib import Path
from clients.node import jail, surroundings
jail._temporary = lambda: [Path("/dev")]  # the tests' own folder lies below /tmp
surroundings.ENGINES = [{str(engine)!r}]
print(*surroundings.surroundings(Path({str(folder)!r}), []), sep="\\n")
print("--")
print(*jail.enter(reads=[Path({str(folder)!r})], writes=[]))
print(*surroundings.surroundings(Path({str(folder)!r}), []), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, _, after = done.stdout.partition("--")
    assert f"can write to {folder}" in before
    assert ("can write" in after) == ("Landlock" in after)  # a kernel without it takes nothing away
    assert f"container engine at {engine}" in after


def test_a_worker_with_nothing_it_does_not_need_says_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo")])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert surroundings(folder, networks()) == []


@pytest.mark.skipif(not NAMESPACES, reason="needs root to make a network namespace")
def test_in_a_network_namespace_of_its_own_a_worker_finds_no_network(folder: Path) -> None:
    code = "from pathlib import Path; from clients.node.surroundings import *; "
    code += f"print(surroundings(Path({str(folder)!r}), networks()))"
    found = {}
    for jail in ((), ("unshare", "-n")):
        done = subprocess.run([*jail, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        found[jail] = "has a network" in done.stdout
    assert not found["unshare", "-n"]
    assert found[()] == any(name != "lo" for _, name in socket.if_nameindex())


def test_two_states_cannot_be_at_work_on_one_folder_also_when_it_is_read_only(folder: Path) -> None:
    (folder / "site.yaml").chmod(0o400)
    folder.chmod(0o500)
    with alone_on(folder) as without:
        assert without == ""
        with (
            pytest.raises(SiteStateError, match="another worker, with a state folder of its own, is at work"),
            alone_on(folder),
        ):
            pass
    with alone_on(folder):
        pass


def test_the_lock_is_the_kernels_and_holds_for_another_process_too(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from clients.node.surroundings import alone_on\n"
        f"with alone_on(Path({str(folder)!r})): print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(SiteStateError, match="two privacy budgets"), alone_on(folder):
            pass
        other.kill()
    with alone_on(folder):
        pass
