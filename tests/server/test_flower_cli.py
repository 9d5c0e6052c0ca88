"""Flower's programs are found where this Python keeps its scripts, wherever that is."""

import socket
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from common.errors import RunError
from server.federation import flower_cli
from server.federation.flower_cli import FlowerCli, flower_environment, tool


def program(folder: Path, name: str = "flwr") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose interpreter, scripts and PATH are three empty folders; the folder above them."""
    for name in ("interpreter", "scripts", "path"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "interpreter" / "python"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return tmp_path


def test_a_program_is_found_where_scripts_lie_elsewhere_than_the_interpreter(elsewhere: Path) -> None:
    program(elsewhere / "path")
    beside = program(elsewhere / "interpreter")
    assert tool("flwr") == str(beside)
    own = program(elsewhere / "scripts")
    assert tool("flwr") == str(own)  # this environment's own, whatever PATH says
    assert flower_environment(elsewhere)["PATH"].startswith(f"{elsewhere / 'scripts'}:")


def test_path_is_the_last_resort_and_a_missing_program_is_no_traceback(elsewhere: Path) -> None:
    with pytest.raises(RunError, match=r"expected the program `flwr` in .*scripts.*found none. Install"):
        tool("flwr")
    assert tool(program(elsewhere / "path").name) == str(elsewhere / "path" / "flwr")


def test_a_superlink_that_stays_away_is_waited_for_and_then_it_is_said_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_cli, "_POLL_S", 0.01)
    monkeypatch.setattr(flower_cli, "_STATUS_PATIENCE_S", 0.2)
    with socket.socket() as taken:  # bound and not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        cli = FlowerCli(f"127.0.0.1:{taken.getsockname()[1]}", None, tmp_path)
        began, looks = time.monotonic(), list[None]()
        with pytest.raises(RunError, match=r"nobody .* answers at(.|\n)*may well go on(.|\n)*--resume"):
            cli.follow("1", tmp_path, lambda: looks.append(None))
    assert looks
    assert time.monotonic() - began >= 0.2
