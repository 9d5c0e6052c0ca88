"""Flower's programs are found wherever this Python keeps them; a SuperLink that is away or new does not end a run."""

import http.server
import io
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk, build_fab_from_files
from rich.console import Console
from tiny import write_study

from common.errors import RunError
from common.run_folder import RunFolder
from server.federation import deployment, flower_cli
from server.federation.deployment import NoLongerFollowing
from server.federation.flower_cli import APP, FlowerCli, UnknownRun, copy_app, flower_environment, tool
from server.federation.following import run_to_its_end


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


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A SuperLink that answers all questions with one HTTP status; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_run_goes_on_at_a_superlink_that_never_had_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlowerCli, "submit", lambda self, config: "2")
    study, run = write_study(tmp_path / "study.yaml"), RunFolder(tmp_path / "run")
    run.make()

    def resume(status: int) -> str:
        run.flower.write_text(json.dumps({"run_id": "1", "address": "localhost:1", "ca": ""}))
        with answering(status) as address:
            return deployment.start(FlowerCli(address, None, tmp_path), study, run.path, resume=True)

    assert resume(404) == "2"
    assert deployment.run_of(run.path).run_id == "2"
    with pytest.raises(RunError, match="answers with HTTP 403"):  # it may have it: two would write one checkpoint
        resume(403)
    assert deployment.run_of(run.path).run_id == "1"


def test_a_superlink_that_never_had_a_run_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    with answering(404) as address, pytest.raises(UnknownRun, match=r"does not know run 7(.|\n)*--resume"):
        FlowerCli(address, None, tmp_path).status("7")


def test_an_app_is_bundled_out_of_its_own_files_alone_and_is_the_same_bundle(tmp_path: Path) -> None:
    copy_app(APP, tmp_path)
    folders = {"clients", "common", "configs", "server"}
    assert {path.name for path in tmp_path.iterdir()} == {"pyproject.toml", ".gitignore", *folders}
    more = (*folders, "simulations", "deploy")
    files = [APP / "pyproject.toml", *(path for name in more for path in (APP / name).rglob("*") if path.is_file())]
    assert build_fab_from_disk(tmp_path) == build_fab_from_files({str(f.relative_to(APP)): f for f in files})[0]


def test_links_and_ignored_files_are_left_out_of_a_bundle_as_flower_does(tmp_path: Path) -> None:
    app, outside, copy = (tmp_path / name for name in ("app", "outside", "copy"))
    for folder in (app / "inner", outside, copy):
        folder.mkdir(parents=True)
    about = '[project]\nname = "app"\nversion = "1.0.0"\n[tool.flwr.app]\npublisher = "us"\nfab-include = ["**/*.py"]\n'
    (app / "pyproject.toml").write_text(
        f'{about}[tool.flwr.app.components]\nserverapp = "own:a"\nclientapp = "own:b"\n'
    )
    (app / ".gitignore").write_text("private*.py\n")
    for file in (app / "own.py", app / "inner" / "own.py", app / "private_one.py", outside / "secret.py"):
        file.write_text("a = b = 1\n")
    (app / "linked.py").symlink_to(outside / "secret.py")
    (app / ".#lock.py").symlink_to("me@host.12:34")
    (app / "inner" / "linked").symlink_to(outside)
    copy_app(app, copy)
    bundle = build_fab_from_disk(copy)
    assert bundle == build_fab_from_disk(app)
    names = zipfile.ZipFile(io.BytesIO(bundle)).namelist()
    assert [name for name in names if name.endswith(".py")] == ["inner/own.py", "own.py"]


def test_ctrl_c_while_a_run_is_submitted_waits_until_its_number_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked: list[str] = []

    def submit(self: FlowerCli, config: object) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        own = subprocess.run(["grep", "SigBlk", "/proc/self/status"], capture_output=True, text=True, check=True)
        blocked.append(own.stdout.split()[1])
        return "7"

    monkeypatch.setattr(FlowerCli, "submit", submit)
    study, before, ended = write_study(tmp_path / "study.yaml"), signal.getsignal(signal.SIGINT), threading.Event()
    other = threading.Thread(target=ended.wait)  # the kernel gives the signal to whichever thread takes it
    other.start()
    try:
        with pytest.raises(NoLongerFollowing):
            deployment.start(FlowerCli("localhost:1", None, tmp_path), study, tmp_path / "run")
    finally:
        ended.set()
        other.join()
    assert deployment.run_of(tmp_path / "run").run_id == "7"
    assert signal.getsignal(signal.SIGINT) is before
    assert int(blocked[0], 16) >> (signal.SIGINT - 1) & 1  # a terminal sends it to the submitting process, too


def test_only_a_run_that_was_started_is_said_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    study, cli = write_study(tmp_path / "study.yaml"), FlowerCli("localhost:1", None, tmp_path)

    def followed(step: str) -> type[BaseException]:
        monkeypatch.setattr(deployment, "start", lambda *_, **__: "7")
        monkeypatch.setattr(deployment, step, interrupted)
        with pytest.raises(KeyboardInterrupt) as found:
            run_to_its_end(cli, study, tmp_path / "run", resume=False, console=Console())
        return found.type

    assert followed("follow") is NoLongerFollowing
    assert followed("start") is KeyboardInterrupt
