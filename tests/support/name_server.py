"""A name server that knows one name, and can fall silent."""

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

#: DNS (RFC 1035): an address record of the internet's class; an answer, here by the authority itself.
_ADDRESS, _INTERNET, _ANSWER, _NO_SUCH_NAME = 1, 1, 0x8500, 3
#: A pointer to the question's name, in place of the name.
_SAME_NAME = 0xC00C


class NameServer:
    """Answers one name with its own address; in a `with`.

    Attributes:
        silent: questions are heard and not answered.
        unanswered: how many were.
    """

    def __init__(self, name: str, address: str) -> None:
        self.silent, self.unanswered = False, 0
        self._name = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
        self._address = address
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        self._socket.settimeout(0.5)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                question, sender = self._socket.recvfrom(512)
                if self.silent:
                    self.unanswered += 1
                else:
                    self._socket.sendto(self._reply(question), sender)

    def _reply(self, question: bytes) -> bytes:
        end = question.index(b"\0", 12) + 5
        name, (kind, _) = question[12 : end - 4], struct.unpack("!HH", question[end - 4 : end])
        known = name.lower() == self._name
        found = known and kind == _ADDRESS
        head = question[:2] + struct.pack("!5H", _ANSWER | (0 if known else _NO_SUCH_NAME), 1, found, 0, 0)
        record = struct.pack("!HHHIH", _SAME_NAME, _ADDRESS, _INTERNET, 0, 4) + socket.inet_aton(self._address)
        return head + question[12:end] + (record if found else b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
