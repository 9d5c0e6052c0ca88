"""What a browser sends to the desk, by hand: each header can be another one, as an attacker's would be."""

import contextlib
import re
import socket as sockets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from urllib.parse import urlencode

from hospital import SECRET
from tiny import study, write_study

from clients.desk.desk import Desk
from clients.desk.gate import COOKIE, FIELD, Gate
from clients.desk.server import serving
from clients.governance.state import State

HOST = "127.0.0.1:8600"
#: The study of the desk that `browser` visits, its pages, and all that a form can ask of it.
STUDY = study()
PAGES = ("/", "/data", "/ledger", f"/study/{STUDY.hash()}", "/predictions")
FORMS = (
    "/data/check",
    *(f"/study/{STUDY.hash()}/{word}" for word in ("try", "approve", "withdraw")),
    "/stop",
)


@dataclass
class Answer:
    status: int
    headers: HTTPMessage
    text: str


class _Connection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("unused", timeout=30)
        self.path = path

    def connect(self) -> None:
        self.sock = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(str(self.path))


@dataclass
class Visitor:
    """A browser at the desk; `cookie` as after the printed address was opened."""

    socket: Path
    gate: Gate
    desk: Desk
    headers: dict[str, str] = field(default_factory=lambda: {"Host": HOST})

    def signed_in(self) -> "Visitor":
        return Visitor(
            self.socket, self.gate, self.desk, self.headers | {"Cookie": f"{COOKIE}={self.gate.session}; other=1"}
        )

    def get(self, path: str, method: str = "GET", **headers: str | None) -> Answer:
        return self.send(method, path, b"", headers)

    def post(
        self, path: str, headers: dict[str, str | None] | None = None, *, body: bytes | None = None, **form: str
    ) -> Answer:
        """Send a form as the desk's own page would, but for what is given; a header of None is left out."""
        content = urlencode({FIELD: self.gate.csrf} | form).encode() if body is None else body
        own: dict[str, str | None] = {
            "Origin": f"http://{HOST}",
            "Content-Type": "application/x-www-form-urlencoded",
            "Content-Length": str(len(content)),
        }
        return self.send("POST", path, content, own | (headers or {}))

    def send(self, method: str, path: str, body: bytes, headers: dict[str, str | None]) -> Answer:
        connection = _Connection(self.socket)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in (self.headers | headers).items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders()
        with contextlib.suppress(BrokenPipeError):  # a form that is too long is answered before it was read
            connection.send(body)
        reply = connection.getresponse()
        answer = Answer(reply.status, reply.headers, reply.read().decode())
        connection.close()
        return answer

    def seen(self, path: str) -> str:
        """What the approval's form on a page says was read."""
        found = re.search(r'name="seen" value="([0-9a-f]{64})"', self.get(path).text)
        assert found, "the page has no form to approve"
        return found[1]


def wait_for(desk: Desk, seconds: float = 120.0) -> None:
    """Wait until the work in the background has ended."""
    deadline = time.monotonic() + seconds
    while desk.background.busy:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def let_in(root: Path, folder: Path) -> Iterator[Visitor]:
    """Open a desk for a site's folder, its data checked, and let a browser in; all else lies in `root`."""
    (root / "studies").mkdir()
    write_study(root / "studies" / "study.yaml")
    desk, gate = Desk(folder, State.create(root / "state", SECRET), root / "studies"), Gate()
    desk.check_data()
    wait_for(desk)
    with serving(desk, gate, root / "d.sock"):
        yield Visitor(root / "d.sock", gate, desk).signed_in()


def kept(browser: Visitor) -> dict[str, bytes]:
    """All that the desk could have changed."""
    folders = (browser.desk.state.folder, browser.desk.folder, browser.desk.studies)
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def approval(browser: Visitor) -> Path:
    """The file of the study's approval."""
    return browser.desk.state.approval(STUDY.hash())
