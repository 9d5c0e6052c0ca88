"""Flower as a `Transport`: bytes out through the Grid, replies taken one by one as they arrive."""

import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from common.contract import EnrolReply, unpack
from common.errors import ContractError
from server.rounds import Failure

#: Between two looks for replies, in seconds.
POLL_S = 0.1
#: How long sites may take to connect and to answer who they are, in seconds: Ray starts slowly.
ENROL_S = 180.0


class GridTransport:
    """Implements `server.rounds.Transport` on Flower's Message API.

    Args:
        grid: of the ServerApp.
        least_nodes: how many connected nodes enrolment waits for.
        on_enrolled: is told the node id behind each site's name.
    """

    def __init__(
        self, grid: Grid, least_nodes: int, *, on_enrolled: Callable[[Mapping[str, int]], None] = lambda nodes: None
    ) -> None:
        self.grid, self.on_enrolled = grid, on_enrolled
        self.least_nodes = least_nodes
        self.nodes: dict[str, int] = {}

    def enrol(self, request: bytes) -> Mapping[str, bytes | Failure]:
        """Ask every connected node. A site's name is its registered node name, else the one it answers."""
        deadline = time.monotonic() + ENROL_S
        while len(nodes := list(self.grid.get_nodes())) < self.least_nodes and time.monotonic() < deadline:
            time.sleep(POLL_S)
        registered = {node.node_id: node.name for node in nodes}
        found: dict[str, bytes | Failure] = {}
        asked = dict.fromkeys(registered, request)
        for node, reply in self._send(asked, lambda _: "query", deadline - time.monotonic()):
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
        names = {self.nodes[site]: site for site in requests if site in self.nodes}
        for site in requests.keys() - self.nodes.keys():
            yield site, Failure("failed", "not connected")
        asked = {node: requests[site] for node, site in names.items()}
        for node, reply in self._send(asked, lambda n: f"train.{task(names[n])}", deadline_s):
            yield names[node], reply

    def _send(
        self, requests: Mapping[int, bytes], kind: Callable[[int], str], deadline_s: float
    ) -> Iterator[tuple[int, bytes | Failure]]:
        arrays = {payload: Array(np.frombuffer(payload, np.uint8)) for payload in set(requests.values())}
        messages = [
            Message(
                RecordDict({"message": ArrayRecord({"payload": arrays[payload]})}),
                dst_node_id=node,
                message_type=kind(node),
                ttl=deadline_s,
            )
            for node, payload in requests.items()
        ]
        ids = list(self.grid.push_messages(messages))
        waiting = dict(zip(ids, requests, strict=True))
        deadline = time.monotonic() + deadline_s
        while waiting and time.monotonic() < deadline:
            arrived = False
            # One id at a time: memory holds one reply, however many sites there are.
            for message_id in list(waiting):
                for reply in self.grid.pull_messages([message_id]):
                    arrived = True
                    yield waiting.pop(message_id), _content(reply)
            if not arrived:
                time.sleep(POLL_S)
        for node in waiting.values():
            yield node, Failure("late", f"no reply within {deadline_s:.0f} s")


def _content(reply: Message) -> bytes | Failure:
    if reply.has_error():
        # The error's text is the other side's; only Flower's code is kept.
        return Failure("failed", f"Flower reports error code {reply.error.code}")
    try:
        return reply.content.array_records["message"]["payload"].numpy().tobytes()
    except (KeyError, ValueError, TypeError):
        return Failure("failed", "the reply is not a CrossProbe message")


def _declared_name(reply: bytes | Failure) -> str | None:
    if isinstance(reply, Failure):
        return None
    try:
        header, _ = unpack(reply)
    except ContractError:
        return None
    return header.site if isinstance(header, EnrolReply) else None
