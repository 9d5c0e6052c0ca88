"""Who may ask the desk, and how: decided on a request's line and headers alone, before anything is looked up.

Another page in the same browser must neither read nor act (`Host`, `Origin`, the cookie's `SameSite`, a hidden field
in each form), and whoever reaches the port without the printed address gets nothing.
"""

import hmac
import secrets
from email.message import Message
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

COOKIE, FIELD, PARAMETER = "crossprobe_desk", "csrf", "token"
#: Bytes of a request's body: a name and two hashes are a few hundred.
MOST_BYTES = 8 * 1024
MOST_FIELDS = 8
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


#: On every reply. No script at all; styles are the desk's own file.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: a browser then hides the origin of the desk's own forms, too.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is answered with a status and a sentence, and nothing else."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Gate:
    """The secrets of one start of the desk.

    Attributes:
        token: in the address that is printed for the person at the desk.
        session: the cookie's value, which the token is changed for.
        csrf: what each form holds, unknown to any other page.
    """

    def __init__(self) -> None:
        self.token, self.session, self.csrf = (secrets.token_urlsafe(32) for _ in range(3))

    def check_host(self, host: str | None) -> None:
        """Check that the browser was sent to this machine by its own name: a foreign name may be rebound to it."""
        if host is None or _hostname(f"http://{host}") not in _LOOPBACK:
            raise Refused(421, "The desk answers at 127.0.0.1 and localhost only.")

    def admits(self, query: str) -> bool:
        """Return whether an address holds the token."""
        return any(_same(value, self.token) for value in _fields(query).get(PARAMETER, ()))

    def check_session(self, cookies: str | None) -> None:
        """Check the cookie."""
        try:
            morsel = SimpleCookie(cookies or "").get(COOKIE)
        except CookieError:
            morsel = None
        if morsel is None or not _same(morsel.value, self.session):
            raise Refused(403, "Open the desk by the address that it printed when it was started.")

    def check_origin(self, headers: Message) -> None:
        """Check that a form was sent from a page of the desk."""
        host, origin = headers.get("Host", ""), headers.get("Origin")
        if origin != f"http://{host}" or headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            raise Refused(403, "This was sent from another page. Nothing was changed.")

    def check_length(self, headers: Message) -> int:
        """Return the bytes of a form."""
        length = headers.get("Content-Length", "")
        if headers.get("Transfer-Encoding") or not (length.isascii() and length.isdigit() and len(length) < 10):
            raise Refused(411, "A form has to say its length. Nothing was changed.")
        if int(length) > MOST_BYTES:
            raise Refused(413, f"A form has at most {MOST_BYTES} bytes. Nothing was changed.")
        if headers.get("Content-Type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            raise Refused(415, "Only the desk's own forms are read. Nothing was changed.")
        return int(length)

    def form(self, body: bytes) -> dict[str, str]:
        """Return a form's fields, once its hidden field was found right."""
        try:
            fields = _fields(body.decode("ascii"))
        except UnicodeDecodeError:
            raise Refused(400, "This is no form. Nothing was changed.") from None
        if any(len(values) > 1 for values in fields.values()):
            raise Refused(400, "A field is there twice. Nothing was changed.")
        form = {name: values[0] for name, values in fields.items()}
        if not _same(form.pop(FIELD, ""), self.csrf):
            raise Refused(403, "This form is not of the desk as it runs now. Nothing was changed: load the page again.")
        return form

    @property
    def cookie(self) -> str:
        """The cookie that admits a browser: no script reads it, and no other site's page sends it."""
        return f"{COOKIE}={self.session}; HttpOnly; SameSite=Strict; Path=/"


def _fields(text: str) -> dict[str, list[str]]:
    try:
        return parse_qs(text, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:  # more fields than any form has, or no UTF-8
        raise Refused(400, "This is no address or form of the desk. Nothing was changed.") from None


def _hostname(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises for what is no port
        return parts.hostname if parts.username is None and not parts.path else None
    except ValueError:
        return None


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
