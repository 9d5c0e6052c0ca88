"""The ledger's heads told to a witness: a log that whoever can change the state folder cannot change.

A ledger cut at its end, or written anew, is found only against a head from elsewhere. The coordinator has those of
replies; the hospital's own log server gets that of every line, the last one's too, and needs nobody outside.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from logging import INFO, LogRecord
from logging.handlers import SysLogHandler
from pathlib import Path

from clients.governance.ledger import LedgerError
from common.files import append_to

#: Takes the head of a line. Raises LedgerError if it cannot be told; nothing leaves then.
Witness = Callable[[str], None]
SYSLOG, _SOCKET = "syslog", "/dev/log"


class _Loud(SysLogHandler):
    """The standard handler, which otherwise drops what the log server does not take."""

    def handleError(self, record: LogRecord) -> None:
        """Raise the error of `emit`."""
        raise


def witness_of(where: str, site: str, socket: str = _SOCKET) -> Witness:
    """Return the witness that `where` names.

    Args:
        where: `syslog`, or a file that each line is appended to, e.g. on a disk that only grows.
        site: name of the site, which each line begins with.
        socket: of the machine's syslog.

    Raises:
        LedgerError: if it cannot be reached or written to.
    """

    def line(head: str) -> str:
        return f"crossprobe {site} ledger head {head}"

    def to_file(head: str) -> None:
        try:
            with open(append_to(Path(where)), "w") as file:
                file.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {line(head)}\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(where, error) from None

    if where != SYSLOG:
        try:
            os.close(append_to(Path(where)))
        except OSError as error:
            raise LedgerError(
                f"the witness {where} is no file that can be written: {error.strerror}. Give a file, or `{SYSLOG}`."
            ) from None
        return to_file
    if not Path(socket).is_socket():  # the handler would wait for the first line to say so
        raise LedgerError(f"there is no system log at {socket}. Start it, mount it here, or give a file as witness.")
    handler = _Loud(address=socket)

    def to_syslog(head: str) -> None:
        try:
            handler.emit(LogRecord("crossprobe", INFO, "", 0, line(head), None, None))
        except OSError as error:
            raise _unwritable(socket, error) from None

    return to_syslog


def _unwritable(where: str, error: OSError) -> LedgerError:
    return LedgerError(
        f"the witness {where} cannot be told the ledger's head: {error.strerror}. Nothing left the site."
    )
