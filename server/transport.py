"""The way to the sites, as the rounds see it: bytes there and back."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from common.errors import ContractError
from common.messages import Header, Refusal, unpack

#: How long sites may take to connect, and then to answer who they are, in seconds: Ray starts slowly.
ENROL_S = 180.0


@dataclass(frozen=True)
class Failure:
    """A site that gave no reply: `code` is `failed` or `late`; `detail` is for the history."""

    code: str
    detail: str


def header_of(reply: bytes | Failure) -> Header:
    """Return the header of what a site sent.

    Raises:
        ContractError: if nothing came, it is no message of ours, or it is a refusal.
    """
    if isinstance(reply, Failure):
        raise ContractError(reply.code, reply.detail)
    header, _ = unpack(reply)
    if isinstance(header, Refusal):
        raise ContractError(header.code, header.message)
    return header


class Transport(Protocol):
    """The way to the sites."""

    def enrol(
        self, request: bytes, known: Collection[str] = (), patience_s: float = ENROL_S
    ) -> Mapping[str, bytes | Failure]:
        """Ask every reachable site but the `known`; site name -> reply.

        Args:
            patience_s: how long sites may take to connect, and then to answer.
        """

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """Send each site its request and yield the replies as they arrive, `late` ones at the deadline.

        Args:
            requests: site name -> message.
            task: site name -> name of its task, by which a network may address it.
        """
