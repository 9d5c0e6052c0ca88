"""`crossprobe study watch`: a run's page for this machine's user alone, live, and after the run its report.

It reads the run's folder and writes nothing. Every request needs the token of the address that the command prints, the
right Host (else another web page could have a browser ask for it under a name of its own: DNS rebinding) and GET or
HEAD. There is one address, `/`: no path ever names a file.
"""

import base64
import contextlib
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs

from common.errors import CrossProbeError, RunError
from common.run_folder import RunFolder
from server.report.live import Run, live_page, read_patiently
from server.report.page import report_page

LOOPBACK = "127.0.0.1"
#: Bytes of a token, far beyond guessing.
TOKEN_BYTES = 32
#: A browser that sends no whole request within this loses its connection, in seconds.
REQUEST_S = 10.0
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def content_policy(page: str) -> str:
    """Return the policy under which a browser shows a page: its own style and script by their hashes, and no more."""

    def hashes(tag: str) -> str:
        found = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        if found is None:
            return "'none'"
        return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {hashes('style')}; script-src {hashes('script')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Files(NamedTuple):
    """When a run's files changed last; what is read from them holds as long as these do."""

    changed: tuple[int, ...]

    @classmethod
    def of(cls, folder: RunFolder) -> "_Files":
        files = [
            file
            for one in (folder, folder.baseline)
            for file in (one.study, one.state, one.history, one.paused, one.error, one.model)
        ]
        return cls(tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files))


class Watcher:
    """A run's page at the moment it is asked for; what a run did not change is not read again."""

    def __init__(self, run: Path) -> None:
        self.folder = RunFolder(run)
        self.known: tuple[_Files, Run] | None = None

    def page(self, now: datetime) -> str:
        """Return the live page, or the report of a run that has its model. Raises CrossProbeError or OSError."""
        files = _Files.of(self.folder)
        if self.known is None or self.known[0] != files:
            self.known = files, read_patiently(self.folder.path)
        run = self.known[1]
        if not run.finished:
            return live_page(run, now)
        report, model = self.folder.report, self.folder.model
        if report.exists() and report.stat().st_mtime_ns >= model.stat().st_mtime_ns:
            return report.read_text(encoding="utf-8")  # with the pictures that only who reads the images could draw
        return report_page(self.folder.path)


class WatchServer(ThreadingHTTPServer):
    """Serves one run on loopback.

    Args:
        port: 0 takes a free one.

    Raises:
        RunError: if the folder is not there or the port is taken.
    """

    daemon_threads = True

    def __init__(self, run: Path, port: int = 0) -> None:
        if not run.is_dir():
            raise RunError(f"{run} is not there; expected a run's folder. Give the --out of `crossprobe study run`.")
        self.watcher = Watcher(run)
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise RunError(f"cannot listen on port {port}: {error.strerror}. Give another --port, or none.") from None
        self.hosts = {f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost")}

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet about a browser that went away; anything else is a mistake of ours and shown."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        """The address to open, token included: whoever has it and is on this machine sees the page."""
        return f"http://{LOOPBACK}:{self.server_port}/?token={self.token}"


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer
    timeout = REQUEST_S
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        given = parse_qs(query).get("token", [])
        if self.headers.get_all("Host") not in [[host] for host in self.server.hosts]:
            self._say(HTTPStatus.MISDIRECTED_REQUEST, "This address is not served here.")
        elif len(given) != 1 or not hmac.compare_digest(given[0].encode(), self.server.token.encode()):
            self._say(HTTPStatus.FORBIDDEN, "Open the whole address that `crossprobe study watch` printed.")
        elif path != "/":
            self._say(HTTPStatus.NOT_FOUND, "There is one page only, at /.")
        else:
            self._page()

    do_HEAD = do_GET

    def _page(self) -> None:
        try:
            page = self.server.watcher.page(datetime.now(UTC))
        except (CrossProbeError, OSError) as error:
            self._say(HTTPStatus.SERVICE_UNAVAILABLE, f"The run cannot be read now: {error}")
        else:
            self._send(HTTPStatus.OK, page, "text/html", content_policy(page))

    def _say(self, status: HTTPStatus, words: str) -> None:
        self._send(status, words + "\n", "text/plain", "default-src 'none'; frame-ancestors 'none'")

    def _send(self, status: HTTPStatus, text: str, kind: str, policy: str) -> None:
        body = text.encode()
        self.send_response(status)
        headers = HEADERS | {"Content-Type": f"{kind}; charset=utf-8", "Content-Security-Policy": policy}
        for name, value in (headers | {"Content-Length": str(len(body)), "Connection": "close"}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is not GET or HEAD, or no HTTP: without repeating any of it."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        self._say(status, status.phrase)

    def version_string(self) -> str:
        return "CrossProbe"

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: a request's line holds the token."""


def watch(run: Path, port: int, tell: Callable[[str], None]) -> None:
    """Serve a run until Ctrl-C.

    Args:
        tell: is told the address once the server answers.

    Raises:
        RunError: see `WatchServer`.
    """
    with contextlib.suppress(KeyboardInterrupt), WatchServer(run, port) as server:
        tell(server.url)
        server.serve_forever()
