"""The desk's pages over HTTP at a Unix socket: this process opens images, and needs no network.

What a browser asks goes through `Gate` first. GET shows and POST acts; each reply ends its connection.
"""

import logging
import os
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from clients.desk import views
from clients.desk.desk import Desk
from clients.desk.gate import HEADERS, PARAMETER, Gate, Refused
from clients.desk.work import DeskError
from clients.node.channel import address
from clients.node.socket_file import UMASK, give_to, remove_stale
from common.errors import CrossProbeError, SiteStateError

log = logging.getLogger("crossprobe.desk")

#: Requests at one time; a browser has six connections.
_THREADS = 16
#: For a browser to send its request, or to take a part of the reply, in seconds.
_PATIENCE_S = 15.0
_STUDY = re.compile(r"/study/([0-9a-f]{64})(?:/(approve|withdraw|try))?")
_PREDICTION = re.compile(r"/predictions/([0-9]{8}T[0-9]{12}Z)(?:/(page|image)/([0-9]{1,7}))?")
_TABLE = re.compile(r"/predictions/([0-9]{8}T[0-9]{12}Z)/results\.csv")


@dataclass
class Reply:
    """A status, a body, and headers beside those of every reply."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    type: str = "text/html; charset=utf-8"


def see(place: str) -> Reply:
    """Return a reply that sends the browser elsewhere with a GET."""
    return Reply(HTTPStatus.SEE_OTHER, headers={"Location": place})


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"
    timeout = _PATIENCE_S
    server_version, sys_version = "crossprobe", ""

    def do_GET(self) -> None:
        """Show a page."""
        self._answer(self._show)

    def do_POST(self) -> None:
        """Do what a form asks for."""
        self._answer(self._act)

    def _show(self) -> Reply:
        gate, place = self.server.gate, self._place()
        if place.path == "/desk.css":
            return Reply(HTTPStatus.OK, self.server.style, type="text/css; charset=utf-8")
        if place.path == "/" and place.query.startswith(f"{PARAMETER}="):
            if not gate.admits(place.query):
                raise Refused(403, "This address is not of the desk as it runs now. Use the one that it printed last.")
            return Reply(HTTPStatus.SEE_OTHER, headers={"Location": "/", "Set-Cookie": gate.cookie})
        gate.check_session(self.headers.get("Cookie"))
        if found := _TABLE.fullmatch(place.path):
            download = {"Content-Disposition": f'attachment; filename="{found[1]}.csv"'}
            return Reply(HTTPStatus.OK, views.results(self.server.desk, found[1]), download, "text/csv; charset=utf-8")
        notice = views.DONE.get(place.query.removeprefix("done="), "")
        return Reply(HTTPStatus.OK, self._page(place.path, notice))

    def _page(self, path: str, notice: str) -> bytes:
        desk, csrf = self.server.desk, self.server.gate.csrf
        found = _STUDY.fullmatch(path)
        if path == "/":
            return views.render("overview.html.j2", desk, csrf, notice=notice, **views.overview(desk))
        if path == "/data":
            sheet = desk.checked.sheet if desk.checked else {}
            return views.render("data.html.j2", desk, csrf, notice=notice, **sheet)
        if path == "/ledger":
            return views.render("ledger.html.j2", desk, csrf, notice=notice, **views.ledger(desk))
        if path == "/predictions":
            return views.render("predictions.html.j2", desk, csrf, notice=notice, **views.predictions(desk))
        if kept := _PREDICTION.fullmatch(path):
            number = int(kept[3] or 1)
            if kept[2] == "image":
                return views.render("picture.html.j2", desk, csrf, **views.picture(desk, kept[1], number))
            return views.render("prediction.html.j2", desk, csrf, **views.prediction(desk, kept[1], number))
        if found and found[2] is None:
            return views.render("study.html.j2", desk, csrf, notice=notice, **views.study(desk, found[1]))
        raise Refused(404, "There is no such page at the desk.")

    def _act(self) -> Reply:
        gate, desk, path = self.server.gate, self.server.desk, self._place().path
        body = self.rfile.read(gate.check_length(self.headers))  # first: unread, it would cut the reply short
        gate.check_session(self.headers.get("Cookie"))
        gate.check_origin(self.headers)
        form = gate.form(body)
        found = _STUDY.fullmatch(path)
        if path == "/data/check":
            desk.check_data()
            return see("/data?done=checking")
        if path == "/stop":
            return see(f"{desk.background.stop()}?done=stopped")
        if path == "/predictions/make":
            desk.predict(form.get("model", ""), form.get("images", ""), form.get("spacing", ""))
            return see("/predictions?done=segmenting")
        if found is None or found[2] is None:
            raise Refused(404, "There is no such form at the desk. Nothing was changed.")
        study_hash, name = found[1], form.get("name", "")
        if found[2] == "try":
            desk.try_out(study_hash)
            return see(f"/study/{study_hash}?done=trying")
        if found[2] == "withdraw":
            desk.withdraw(study_hash, by=name)
            return see("/?done=withdrawn")
        if form.get("read") != "yes":
            raise DeskError("Tick that you have read what this study would do. Nothing was changed.")
        approval = desk.approve(
            study_hash,
            by=name,
            seen=form.get("seen", ""),
            passphrase=form.get("passphrase", ""),
            restart=form.get("restart") == "yes",
        )
        site = desk.checked.site if desk.checked else None
        half = site is not None and approval.void(site.config)
        return see(f"/study/{study_hash}?done={'half' if half else 'approved'}")

    def _place(self) -> SplitResult:
        if any(len(self.headers.get_all(name, ())) > 1 for name in ("Host", "Origin", "Content-Length")):
            raise Refused(400, "A header is there twice. Nothing was changed.")
        self.server.gate.check_host(self.headers.get("Host"))
        try:
            return urlsplit(self.path)
        except ValueError:
            raise Refused(400, "This is no address of the desk.") from None

    def _answer(self, act: Callable[[], Reply]) -> None:
        try:
            reply = act()
        except Refused as refused:
            reply = self._refusal(refused.status, refused.sentence)
        except CrossProbeError as error:
            reply = self._refusal(HTTPStatus.CONFLICT, str(error))
        except Exception:  # of any kind: what a person sees is a sentence, the log has the rest
            log.exception("the desk failed")
            reply = self._refusal(500, "This failed. The desk's log says why.")
        self._send(reply)

    def _refusal(self, status: int, sentence: str) -> Reply:
        return Reply(status, views.ENVIRONMENT.get_template("refusal.html.j2").render(sentence=sentence).encode())

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in (HEADERS | reply.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Type", reply.type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request that the desk knows; the standard page repeats what was sent."""
        self.close_connection = True
        self.request_version = getattr(self, "request_version", "HTTP/1.0") or "HTTP/1.0"
        self._send(self._refusal(code, "The desk does not answer this kind of request."))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Write no address down: one holds the token."""


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, socket: Path, desk: Desk, gate: Gate) -> None:
        self.desk, self.gate, self.style = desk, gate, views.style()
        self._free = threading.BoundedSemaphore(_THREADS)
        super().__init__(str(socket), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._free.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.info("a browser went away", exc_info=True)


@contextmanager
def serving(desk: Desk, gate: Gate, socket: Path, *, group: str | None = None) -> Iterator[None]:
    """Show the desk's pages at `socket` for as long as the block runs.

    Args:
        group: name of the group that may connect, beside this user; default: the user's own.

    Raises:
        SiteStateError: if the socket cannot be made, see `clients.node.socket_file`.
    """
    address(socket)
    remove_stale(socket)
    before = os.umask(UMASK)
    try:
        server = _Server(socket, desk, gate)
    except OSError as error:
        raise SiteStateError(f"cannot listen at {socket}: {error.strerror}. Its folder has to be there.") from None
    finally:
        os.umask(before)
    thread = threading.Thread(target=server.serve_forever, name="desk", daemon=True)
    thread.start()
    try:
        if group is not None:
            give_to(socket, group)
        yield
    finally:
        server.shutdown()
        server.server_close()
        socket.unlink(missing_ok=True)
