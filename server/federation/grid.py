"""Flower as a `Transport`: bytes out through the Grid, replies taken one by one as they arrive."""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from common.errors import ContractError
from common.messages import EnrolReply, unpack
from common.payload import fields_of, payload_of
from common.signing import unseal
from server.transport import ENROL_S, Failure

#: Between two looks for replies, and for nodes that connect, in seconds.
POLL_S, NODES_POLL_S = 0.1, 0.5
#: A look at a site that has not replied costs milliseconds of the SuperLink too, which the sites need as well: this
#: share of the time is spent on such looks at most. Simulated sites need the same machine. For hospitals a look must
#: not be late: that a SuperNode is gone shows only until it is back, and what it had been given is lost with it.
SIMULATED_SHARE, HOSPITALS_SHARE = 0.2, 0.5
#: What Flower's error codes mean to a coordinator. An error's own text is the other side's and is not kept.
_LATE = (3, 4)
_CODES = {
    1: "its app did not start",
    2: "its app failed",
    5: "its SuperNode is gone",
    8: "its app's process was ended",
}


class GridTransport:
    """Implements `server.transport.Transport` on Flower's Message API.

    Args:
        grid: of the ServerApp.
        least_nodes: how many connected nodes enrolment waits for.
        at_once: how many requests may be under way together; default: all, for hospitals work side by side. Simulated
            sites take turns at a few cores, and what waits for its turn is only held in memory, request by request.
        on_enrolled: is told the node id behind each site's name.
    """

    def __init__(
        self,
        grid: Grid,
        least_nodes: int,
        *,
        at_once: int | None = None,
        on_enrolled: Callable[[Mapping[str, int]], None] = lambda nodes: None,
    ) -> None:
        self.grid, self.on_enrolled = grid, on_enrolled
        self.least_nodes, self.at_once = least_nodes, at_once
        self.nodes: dict[str, int] = {}

    def enrol(
        self, request: bytes, known: Collection[str] = (), patience_s: float = ENROL_S
    ) -> Mapping[str, bytes | Failure]:
        """Ask every connected node but the known.

        A site's name is its registered node name, else the one it answers.
        """
        deadline = time.monotonic() + patience_s
        while len(nodes := list(self.grid.get_nodes())) < self.least_nodes and time.monotonic() < deadline:
            time.sleep(NODES_POLL_S)
        spared = {self.nodes[name] for name in known if name in self.nodes}
        registered = {node.node_id: node.name for node in nodes if node.node_id not in spared}
        found: dict[str, bytes | Failure] = {}
        asked = dict.fromkeys(registered, request)
        for node, reply in self._send(asked, lambda _: "query", patience_s):
            name = registered[node] or _declared_name(reply) or f"node-{node}"
            if name in found:
                found[name] = Failure("failed", "two nodes give this name; rename one in its site.yaml")
            else:
                found[name] = reply
                self.nodes[name] = node
        self.on_enrolled(self.nodes)
        return found

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """Send all requests in one batch and yield replies as they arrive."""
        if requests.keys() - self.nodes.keys():  # a site that was away at the enrolment of a resumed run
            self.nodes |= {node.name: node.node_id for node in self.grid.get_nodes() if node.name in requests}
            self.on_enrolled(self.nodes)
        names = {self.nodes[site]: site for site in requests if site in self.nodes}
        for site in requests.keys() - self.nodes.keys():
            yield site, Failure("failed", "not connected")
        asked = {node: requests[site] for node, site in names.items()}
        for node, reply in self._send(asked, lambda n: f"train.{task(names[n])}", deadline_s):
            yield names[node], reply

    def _send(
        self, requests: Mapping[int, bytes], kind: Callable[[int], str], deadline_s: float
    ) -> Iterator[tuple[int, bytes | Failure]]:
        deadline = time.monotonic() + deadline_s
        arrays = {payload: Array(**fields_of(payload)) for payload in set(requests.values())}
        unsent, waiting = deque(requests), dict[str, int]()
        while (unsent or waiting) and (left_s := deadline - time.monotonic()) > 0:
            room = len(unsent) if self.at_once is None else self.at_once - len(waiting)
            nodes = [unsent.popleft() for _ in range(min(room, len(unsent)))]
            messages = [
                Message(
                    RecordDict({"message": ArrayRecord({"payload": arrays[requests[node]]})}),
                    dst_node_id=node,
                    message_type=kind(node),
                    ttl=left_s,
                )
                for node in nodes
            ]
            ids = list(self.grid.push_messages(messages)) if messages else []
            for message_id, node in zip(ids, nodes, strict=True):
                if message_id:
                    waiting[message_id] = node
                else:
                    yield node, Failure("failed", "Flower does not know its SuperNode")
            yield from self._arrived(waiting, deadline_s)
        for node in (*waiting.values(), *unsent):
            yield node, _late(deadline_s)

    def _arrived(self, waiting: dict[str, int], deadline_s: float) -> Iterator[tuple[int, bytes | Failure]]:
        """Look once for each reply that is waited for, yield those that are there, then let some time pass."""
        looked_s, arrived = 0.0, False
        # One id at a time: memory holds one reply, however many sites there are.
        for message_id in list(waiting):
            began = time.monotonic()
            reply = self._pulled(message_id, deadline_s)
            if reply is None:
                looked_s += time.monotonic() - began
            else:
                arrived = True
                yield waiting.pop(message_id), reply
        if waiting:
            share = HOSPITALS_SHARE if self.at_once is None else SIMULATED_SHARE
            time.sleep(max(0.0 if arrived else POLL_S, looked_s * (1 / share - 1)))

    def _pulled(self, message_id: str, deadline_s: float) -> bytes | Failure | None:
        """Return the reply to a message, None if there is none yet.

        Flower unpacks a reply as it pulls it, and what a site packed wrongly fails in there in many ways. That is the
        site's failure alone, unless the SuperLink fails at another question too.
        """
        try:
            reply = next(iter(self.grid.pull_messages([message_id])), None)  # a site may have sent more than one
            return None if reply is None else _content(reply, deadline_s)
        except Exception:
            list(self.grid.get_nodes())
            return _unreadable()


def _late(deadline_s: float) -> Failure:
    return Failure("late", f"no reply within {deadline_s:.0f} s")


def _content(reply: Message, deadline_s: float) -> bytes | Failure:
    if reply.has_error():
        code = reply.error.code
        if code in _LATE:  # Flower's own clock was a little ahead of ours
            return _late(deadline_s)
        return Failure("failed", f"{_CODES.get(code, 'no reply')} (Flower's error code {code})")
    return payload_of(reply.content.array_records["message"]["payload"])


def _unreadable() -> Failure:
    return Failure("failed", "the reply is not a CrossProbe message")


def _declared_name(reply: bytes | Failure) -> str | None:
    if isinstance(reply, Failure):
        return None
    try:
        header, _ = unpack(unseal(reply).payload)
    except ContractError:
        return None
    return header.site if isinstance(header, EnrolReply) else None
