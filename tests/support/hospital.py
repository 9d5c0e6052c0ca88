"""A hospital for tests: a site with a state folder, an approved study and a guarded worker."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tiny import POLICY

from clients.data.site import Site
from clients.governance.approval import approve
from clients.governance.ledger import read
from clients.governance.policy import Policy
from clients.governance.state import State
from clients.learning.training import Measured, Outcome, TaskContext
from clients.node.gatekeeper import Gatekeeper
from common.messages import Header, TaskReply, unpack
from common.study import Study

SECRET = bytes(range(32))


def with_policy(site: Site, **policy: Any) -> Site:
    """The site under a policy that has its keys' defaults, but for the floors of `tiny` and those given."""
    return replace(site, config=site.config.model_copy(update={"policy": Policy.model_validate(POLICY | policy)}))


@dataclass
class Hospital:
    """A site's state folder and the worker on it; `reopened` is the worker after a restart."""

    site: Site
    state: State
    worker: Gatekeeper

    def reopened(self, site: Site | None = None) -> "Hospital":
        site = site or self.site
        state = State(self.state.folder)
        return Hospital(site, state, Gatekeeper(site, state, busy_wait_s=0.1))

    def answer(self, payload: bytes) -> Header:
        return unpack(self.worker.handle(payload))[0]

    def code(self, payload: bytes) -> str:
        """The code of the refusal, or `ok`."""
        return getattr(self.answer(payload), "code", "ok")

    def ledger(self) -> list[dict[str, Any]]:
        return list(read(self.state.ledger))


def hospital(folder: Path, site: Site, *approved: Study) -> Hospital:
    """A hospital with a new state folder that approved these studies."""
    state = State.create(folder, SECRET)
    for study in approved:
        approve(state, site, study, by="anna")
    return Hospital(site, state, Gatekeeper(site, state, busy_wait_s=0.1))


@dataclass
class Stub:
    """Stands in for the tasks: counts them, and trains nothing."""

    ran: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=lambda: {"loss": 0.5})
    during: Callable[[TaskContext], None] = lambda context: None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Stub":
        def perform(context: TaskContext) -> Outcome:
            self.ran.append(context.task.task)
            self.during(context)
            return Outcome({name: Measured(value, 1000) for name, value in self.metrics.items()}, drawn=1000)

        monkeypatch.setattr("clients.node.worker.perform", perform)
        return self


def done(header: Header) -> TaskReply:
    assert isinstance(header, TaskReply), header
    return header
