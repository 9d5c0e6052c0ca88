"""A hospital's desk in its containers: what is seen of it from where."""

import contextlib
import os
import re
import signal
import socket
import subprocess
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from kits import Inside, Kit, under
from processes import wait_until


@dataclass
class Desk:
    """What was seen of a hospital's desk while it was up.

    Attributes:
        shown: status and text of its page at this machine's loopback, by the address that it printed.
        without_token: status of the same page without the token.
        elsewhere: address of this machine's -> whether the desk's port answered there.
        pages, forward: looks into its two containers.
        running: containers of it that ran on after Ctrl-C.
    """

    shown: tuple[int, str]
    without_token: int
    elsewhere: dict[str, bool]
    pages: Inside
    forward: Inside
    running: list[str]


def sit_at(east: Kit, root: Path) -> Desk:
    """Start a hospital's desk as its README says, open its page, try to reach it otherwise, and end it with Ctrl-C."""
    log = root / "desk.log"
    process = east.background(under((east.folder / "README.md").read_text(), "In a browser instead."), log)
    try:
        printed = rf"http://127\.0\.0\.1:{east.desk_port}(/\?token=\S+)"
        wait_until(lambda: re.search(printed, log.read_text()), f"the desk's address, see {log}", 180)
        place = re.search(printed, log.read_text())
        assert place is not None
        machine = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
        others = {host for host in [*machine, east.engine.gateway()] if host and ":" not in host}
        seen = {
            "without_token": _page(east.desk_port, "/")[0],
            "shown": _page(east.desk_port, place.group(1)),
            "elsewhere": {host: _answers(host, east.desk_port) for host in sorted(others)},
            "pages": east.inside("desk-pages"),
            "forward": east.inside("desk-forward"),
        }
        ask = "import socket\ntry: socket.getaddrinfo('desk.example.org', 443)\nexcept OSError: pass\n"
        east.run_in("desk-forward", "python", "-c", ask)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    running = [each for part in ("pages", "forward") for each in _running(east, f"desk-{part}")]
    return Desk(**seen, running=running)


def _page(port: int, path: str) -> tuple[int, str]:
    """Return the status and the text of the desk's page, its one redirection followed as a browser does."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    reply = connection.getresponse()
    text = reply.read().decode()
    if reply.status in (302, 303):
        cookie = reply.getheader("Set-Cookie", "").partition(";")[0]
        connection.request("GET", reply.getheader("Location"), headers={"Cookie": cookie})
        reply = connection.getresponse()
        text = reply.read().decode()
    return reply.status, text


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=3):
        return True
    return False


def _running(kit: Kit, service: str) -> list[str]:
    label = [f"label=com.docker.compose.project={kit.project}", f"label=com.docker.compose.service={service}"]
    return kit.engine.docker("ps", "-q", "--filter", label[0], "--filter", label[1]).stdout.split()
