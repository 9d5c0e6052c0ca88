"""Flower's Grid as a transport: who is asked, and what becomes of errors and of sites that come and go."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

import server.federation.grid
from server.federation.grid import GridTransport
from server.transport import Failure


@dataclass
class Node:
    node_id: int
    name: str


@dataclass
class FakeGrid:
    """A Grid whose nodes reply with an error of Flower's; a node without one never replies.

    Attributes:
        errors: node id -> error code.
        unknown: ids of nodes to which nothing can be sent.
    """

    nodes: list[Node]
    errors: dict[int, int] = field(default_factory=dict)
    unknown: tuple[int, ...] = ()
    sent: list[Message] = field(default_factory=list)

    def get_nodes(self) -> list[Node]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterator[str | None]:
        for message in messages:
            self.sent.append(message)
            node = message.metadata.dst_node_id
            yield None if node in self.unknown else str(node)

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        codes = [self.errors[int(i)] for i in ids if int(i) in self.errors]
        return [SimpleNamespace(has_error=lambda: True, error=SimpleNamespace(code=code)) for code in codes]


@pytest.fixture(autouse=True)
def inside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower sets in a ServerApp's process; a Message cannot be made without it."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def exchange(grid: FakeGrid, *sites: str, transport: GridTransport | None = None) -> dict[str, bytes | Failure]:
    transport = transport or GridTransport(grid, 1)
    return dict(transport.exchange(dict.fromkeys(sites, b"x"), lambda site: "score", 0.05))


def failure(reply: bytes | Failure) -> Failure:
    assert isinstance(reply, Failure)
    return reply


@pytest.mark.parametrize(
    ("code", "status", "detail"),
    [(5, "failed", "its SuperNode is gone"), (8, "failed", "its app's process was ended"), (99, "failed", "no reply")]
    + [(code, "late", "no reply within 0 s") for code in (3, 4)],
)
def test_an_error_of_flowers_names_its_site_and_what_it_means(code: int, status: str, detail: str) -> None:
    found = failure(exchange(FakeGrid([Node(7, "north")], {7: code}), "north")["north"])
    assert found.code == status
    assert detail in found.detail


def test_a_site_that_never_replies_is_late() -> None:
    grid = FakeGrid([Node(7, "north"), Node(8, "east")], {8: 5})
    found = exchange(grid, "north", "east")
    assert {site: failure(reply).code for site, reply in found.items()} == {"north": "late", "east": "failed"}


def test_a_site_that_flower_forgot_does_not_stop_the_others() -> None:
    grid = FakeGrid([Node(7, "north"), Node(8, "east")], {8: 5}, unknown=(7,))
    found = exchange(grid, "north", "east")
    assert {site: failure(reply).code for site, reply in found.items()} == {"north": "failed", "east": "failed"}


def test_a_site_that_was_away_when_a_run_was_resumed_is_asked_once_it_is_back() -> None:
    told: list[set[str]] = []
    grid = FakeGrid([Node(7, "north")], {7: 5, 8: 5})
    transport = GridTransport(grid, 1, on_enrolled=lambda nodes: told.append(set(nodes)))
    transport.enrol(b"x", patience_s=0.05)
    assert failure(exchange(grid, "north", "east", transport=transport)["east"]).detail == "not connected"
    grid.nodes.append(Node(8, "east"))
    exchange(grid, "north", "east", transport=transport)
    assert [message.metadata.dst_node_id for message in grid.sent] == [7, 7, 7, 8]
    assert told[-1] == {"north", "east"}


def test_known_sites_are_not_asked_again_who_they_are() -> None:
    grid = FakeGrid([Node(7, "north"), Node(8, "east")], {7: 5, 8: 5})
    transport = GridTransport(grid, 2)
    assert transport.enrol(b"x", patience_s=0.05).keys() == {"north", "east"}
    assert transport.enrol(b"x", ["north"], patience_s=0.05).keys() == {"east"}


def test_whoever_is_connected_is_asked_also_when_others_were_waited_for_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server.federation.grid, "NODES_POLL_S", 0.01)
    grid = FakeGrid([Node(7, "north")], {7: 5})
    assert GridTransport(grid, 2).enrol(b"x", patience_s=0.05).keys() == {"north"}
    assert [message.metadata.ttl for message in grid.sent] == pytest.approx([0.05], rel=0.2)


@dataclass
class CountingGrid(FakeGrid):
    """Whose nodes fail one look after they were asked; `most` is how many waited for an answer at a time."""

    most: int = 0
    waiting: dict[str, int] = field(default_factory=dict)

    def push_messages(self, messages: Iterable[Message]) -> Iterator[str | None]:
        for message_id in super().push_messages(messages):
            self.waiting[str(message_id)] = 0
            self.most = max(self.most, len(self.waiting))
            yield message_id

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        (message_id,) = ids
        self.waiting[message_id] += 1
        if self.waiting[message_id] < 2:
            return []
        del self.waiting[message_id]
        return super().pull_messages([message_id])


def test_simulated_sites_are_asked_a_few_at_a_time_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.federation.grid, "POLL_S", 0.001)
    names = [f"site-{number}" for number in range(20)]
    grid = CountingGrid([Node(i, name) for i, name in enumerate(names)], dict.fromkeys(range(20), 8))
    transport = GridTransport(grid, 20, at_once=3)
    assert transport.enrol(b"x", patience_s=30).keys() == set(names)
    assert grid.most == 3
    found = dict(transport.exchange(dict.fromkeys(names, b"x"), lambda site: "score", 30))
    assert {failure(reply).code for reply in found.values()} == {"failed"}
    assert len(found) == 20
    assert grid.most == 3


def test_sites_whose_turn_does_not_come_are_late() -> None:
    grid = FakeGrid([Node(7, "north"), Node(8, "east")])
    found = exchange(grid, "north", "east", transport=GridTransport(grid, 2, at_once=1))
    assert {site: failure(reply).code for site, reply in found.items()} == {"north": "late", "east": "late"}
    assert len(grid.sent) == 1


@pytest.mark.parametrize(("at_once", "share"), [(2, 0.8), (None, 0.5)], ids=["simulated", "hospitals"])
def test_looks_for_replies_leave_most_of_the_machine_to_sites_that_share_it_and_half_the_superlink_to_others(
    at_once: int | None, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds

    class SlowGrid(FakeGrid):
        def pull_messages(self, ids: Iterable[str]) -> list[Any]:
            clock.now += 0.5
            return []

    monkeypatch.setattr(server.federation.grid, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    transport = GridTransport(SlowGrid([Node(7, "north"), Node(8, "east")]), 2, at_once=at_once)
    dict(transport.exchange(dict.fromkeys(["north", "east"], b"x"), lambda site: "score", 20))
    assert sum(slept) / clock.now == pytest.approx(share, abs=0.01)
