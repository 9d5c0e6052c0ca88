"""`crossprobe doctor` finds each thing that it is there for, and says how to mend it."""

import http.server
import json
import os
import platform
import shutil
import socket
import ssl
import threading
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clients import doctor
from clients.doctor import Check, examine
from clients.governance.state import State
from clients.node.keys import make_node_keys
from crossprobe import main
from server.federation.authority import make_authority, make_server_certificate


def one(name: str, checks: list[Check]) -> Check:
    (found,) = [check for check in checks if check.check.startswith(name)]
    return found


def kit(folder: Path, *, days: int = 400, host: str = "127.0.0.1") -> Path:
    """A folder with ca.crt, server.crt and server.key."""
    folder.mkdir(parents=True)
    make_authority(folder)
    make_server_certificate(folder, folder, [host], days=days)
    return folder


@contextmanager
def answering(folder: Path, date: str | None = None) -> Iterator[int]:
    """A server with a kit's certificate, and a clock of its own; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(timestamp) if date is None else date

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_the_way_to_the_coordinator_is_tried_as_a_node_goes_it(tmp_path: Path) -> None:
    good = kit(tmp_path / "kit")
    with answering(good) as port:
        checks = examine(tmp_path, address=("127.0.0.1", port), ca=good / "ca.crt")
        found = [check.level for check in checks if "coordinator" in check.check or check.check == "clock"]
        assert found == ["ok", "ok", "ok"]
        other = kit(tmp_path / "other")
        refused = one("coordinator", examine(tmp_path, address=("127.0.0.1", port), ca=other / "ca.crt"))
        assert refused.level == "mend"
        assert "not certified" in refused.found
        unnamed = one("coordinator", examine(tmp_path, address=("localhost", port), ca=good / "ca.crt"))
        assert unnamed.level == "mend"
        assert "ca.crt" in unnamed.fix
    nobody = one("coordinator", examine(tmp_path, address=("127.0.0.1", port), ca=good / "ca.crt"))
    assert nobody.level == "mend"
    assert "refused" in nobody.found
    lost = one("coordinator", examine(tmp_path, address=("no-such-host.invalid", 443), ca=good / "ca.crt"))
    assert (lost.level, lost.found) == ("mend", "no such name")
    assert one("coordinator", examine(tmp_path, address=("127.0.0.1", 1), ca=tmp_path / "none")).level == "mend"


def test_a_server_that_says_nothing_and_one_that_is_none_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ANSWER_S", 0.3)
    good = kit(tmp_path / "kit")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = one("coordinator", examine(tmp_path, address=silent.getsockname(), ca=good / "ca.crt"))
    assert found.level == "mend"
    assert "no answer within" in found.found


@pytest.mark.parametrize(
    ("date", "level", "said"),
    [
        ("Thu, 01 Jan 2015 00:00:00 GMT", "mend", "ahead of"),
        ("Fri, 01 Jan 2100 00:00:00 GMT", "mend", "behind"),
        ("yesterday", "note", "no time"),
    ],
)
def test_a_clock_that_differs_from_the_coordinators_is_found(date: str, level: str, said: str, tmp_path: Path) -> None:
    good = kit(tmp_path / "kit")
    with answering(good, date) as port:
        clock = one("clock", examine(tmp_path, address=("127.0.0.1", port), ca=good / "ca.crt"))
    assert clock.level == level
    assert said in clock.found


@pytest.mark.parametrize(("days", "level"), [(-1, "mend"), (10, "mend"), (400, "ok")])
def test_a_certificate_that_ended_or_soon_will_is_found(days: int, level: str, tmp_path: Path) -> None:
    file = kit(tmp_path / "kit", days=days) / "server.crt"
    found = one("certificate", examine(tmp_path, certificates=[file]))
    assert found.level == level
    assert ("--renew" in found.fix) == (level == "mend")


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.crt").write_text("no")
    assert one("certificate", examine(tmp_path, certificates=[tmp_path / "x.crt"])).found.endswith("no PEM certificate")
    assert one("certificate", examine(tmp_path, certificates=[tmp_path / "none"])).level == "mend"


def test_the_rights_of_a_state_folder_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "state"
    missing = one("state", examine(tmp_path, state=folder))
    assert (missing.level, f"site init --state {folder}" in missing.fix) == ("mend", True)
    State.create(folder)
    make_node_keys(tmp_path / "node")
    assert one("state", examine(tmp_path, state=folder)).level == "ok"
    assert one("state", examine(tmp_path, state=tmp_path / "node")).level == "ok"
    (folder / "secret").chmod(0o640)
    opened = one("state", examine(tmp_path, state=folder))
    assert (opened.level, opened.found, opened.fix) == ("mend", "1 that others can read", f"chmod -R go-rwx {folder}")
    (folder / "secret").chmod(0o600)
    (folder / "approvals").chmod(0o777)
    assert "others can write into" in one("state", examine(tmp_path, state=folder)).found
    (folder / "approvals").chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "of another user" in one("state", examine(tmp_path, state=folder)).found


def test_a_port_in_use_or_forbidden_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as busy:
        port = busy.getsockname()[1]
        assert one("port", examine(tmp_path, ports=[port])).level == "note"
    assert one("port", examine(tmp_path, ports=[port])).level == "ok"

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", forbidden)
    assert one("port", examine(tmp_path, ports=[80])).level == "mend"


def test_too_little_memory_and_disk_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MEMORY_GIB", (1e6, 2e6))
    assert one("memory", examine(tmp_path)).level == "mend"
    usage = namedtuple("usage", "total used free")
    for free, level in ((0.5, "mend"), (2, "note"), (50, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(100, 0, free * doctor.GIB))
        assert one("disk", examine(tmp_path / "not" / "yet")).level == level


def test_another_python_and_another_torch_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = examine(tmp_path)
    assert [one(name, checks).level for name in ("python", "torch")] == ["ok", "ok"]
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.4")
    monkeypatch.setattr(doctor, "version", lambda name: "1.0+cpu")
    checks = examine(tmp_path)
    assert one("python", checks).found == "3.10.4, expected >=3.11"
    assert one("torch", checks).found.startswith("1.0+cpu, expected 2.")


@pytest.mark.parametrize(
    ("script", "level", "said"),
    [("echo 27.1", "ok", "27.1"), ("echo no daemon >&2; exit 1", "note", "no daemon"), (None, "note", "not installed")],
)
def test_docker_is_asked(
    script: str | None, level: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script:
        (tmp_path / "docker").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "docker").chmod(0o755)
    found = one("Docker", examine(tmp_path))
    assert (found.level, found.found) == (level, said)


def test_the_command_fails_only_if_something_has_to_be_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "MEMORY_GIB", (0.0, 0.0))
    monkeypatch.setattr(doctor, "DISK_GIB", (0.0, 0.0))
    assert main(["doctor", "--runs", str(tmp_path), "--json"]) == 0
    good = json.loads(capsys.readouterr().out)
    assert good["ok"]
    assert {"python", "torch", "GPU", "cores", "memory", "disk", "Docker", "port 9443", "clock"} == {
        check["check"] for check in good["checks"]
    }
    assert main(["doctor", "--runs", str(tmp_path), "--state", str(tmp_path / "none"), "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["ok"]
    assert main(["doctor", "--runs", str(tmp_path), "--state", str(tmp_path / "none")]) == 1
    shown = capsys.readouterr()
    assert "how to fix" in shown.out
    assert "1 to mend" in shown.err
    assert main(["doctor", "--address", "fl.example.org:443"]) == 2
    assert main(["doctor", "--address", "fl.example.org", "--ca", "ca.crt"]) == 2
    assert list(tmp_path.iterdir()) == []
