"""A run that lacks a role waits for its sites, says so, and goes on; or ends by its deadline, resumable."""

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
from finished import Finished
from tiny import Remembered, content, study, workers

import server.run
from clients.node.refusals import refusal
from common.errors import RunError
from common.messages import pack
from common.run_folder import RunFolder
from server import history, pause
from server.federation import deployment
from server.pause import Pause
from server.run import run_study
from server.state import load_state
from server.transport import Failure
from simulations.local import LocalTransport

GONE = Failure("failed", "its SuperNode is gone (Flower's error code 5)")


class Leaving(Remembered):
    """`east`, the only target, is away at its `at`th exchange and until it was looked for `vain` times."""

    def __init__(self, finished: Finished, run: Path, *, at: int, vain: int) -> None:
        super().__init__(finished.transport)
        self.run, self.at, self.vain = run, at, vain
        self.exchanges = 0
        self.seen: list[Pause | None] = []
        self.spared: list[set[str]] = []

    def enrol(
        self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
    ) -> Mapping[str, bytes | Failure]:
        found = dict(super().enrol(request, known))
        if self.exchanges:
            self.seen.append(pause.read(self.run))
            self.spared.append(set(known))
            if len(self.seen) <= self.vain:
                del found["east"]
        return found

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        self.exchanges += 1
        for site, reply in super().exchange(requests, task, deadline_s):
            yield site, GONE if site == "east" and self.exchanges == self.at else reply


@pytest.fixture(autouse=True, scope="module")
def impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.run, "ASK_AGAIN_S", 0.01)
        yield


@pytest.fixture(scope="module")
def returned(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Leaving:
    leaving = Leaving(finished, tmp_path_factory.mktemp("returned"), at=3, vain=2)
    run_study(finished.study, leaving, leaving.run)
    return leaving


def test_a_run_that_lacks_a_role_says_which_and_since_when(returned: Leaving) -> None:
    first, *later = returned.seen
    assert first is not None
    assert (first.round, first.stage, first.lacking) == (2, "refine", {"target": [0, 1]})
    assert first.sites == {"east": f"failed: {GONE.detail}"}
    since, until = datetime.fromisoformat(first.since), datetime.fromisoformat(first.until)
    assert until - since == timedelta(seconds=1800)
    assert [again and (again.since, again.sites) for again in later] == [(first.since, {"east": "not connected"})] * 2
    for word in (first.since, "round 2 (refine)", "1 target site(s) and has 0", "east failed", first.until, "3 more"):
        assert word in first.sentence()


def test_only_the_sites_that_are_missed_are_asked_whether_they_are_back(returned: Leaving) -> None:
    assert returned.spared == [{"north"}] * 3


def test_it_goes_on_when_they_return_and_ends_with_the_same_bits(returned: Leaving, finished: Finished) -> None:
    records = history.read(returned.run)
    assert [r.round for r in records if not r.counted] == [2]
    assert [r.round for r in records if r.counted] == [r.round for r in history.read(finished.run)]
    assert RunFolder(returned.run).model.read_bytes() == RunFolder(finished.run).model.read_bytes()
    assert not RunFolder(returned.run).paused.exists()


class Away(LocalTransport):
    """`east` never answers, neither a round nor whether it is there."""

    def enrol(
        self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
    ) -> Mapping[str, bytes | Failure]:
        found = super().enrol(request, known)
        return {name: reply for name, reply in found.items() if name != "east" or not known}

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        for site, reply in super().exchange(requests, task, deadline_s):
            yield site, GONE if site == "east" else reply


def test_it_ends_by_its_deadline_with_everything_saved(pair: Sequence[Path], tmp_path: Path) -> None:
    of = study(stages=content()["stages"][:1], participation={"deadline_s": 0.4, "retries": 2})
    run, reference = tmp_path / "run", tmp_path / "reference"
    begun = time.monotonic()
    with pytest.raises(RunError, match=r"round 0 \(pretrain\).*3 times: east failed its SuperNode.*--resume"):
        run_study(of, Away(workers(of, pair)), run)
    assert time.monotonic() - begun > 2 * 0.4
    assert [(r.round, r.counted) for r in history.read(run)] == [(0, False)] * 3
    assert not RunFolder(run).paused.exists()
    state = load_state(RunFolder(run).checkpoint, of.hash())
    assert state is not None
    assert state.round == 0
    run_study(of, LocalTransport(workers(of, pair)), run, resume=True)
    run_study(of, LocalTransport(workers(of, pair)), reference)
    assert RunFolder(run).model.read_bytes() == RunFolder(reference).model.read_bytes()


def test_who_is_no_participant_does_not_have_the_others_asked_without_a_rest(
    pair: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Stranger(Away):
        def enrol(
            self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
        ) -> Mapping[str, bytes | Failure]:
            found = dict(super().enrol(request, known))
            if known:
                asked.append(known)
                found["west"] = super().enrol(request)["north"]
            return found

    monkeypatch.setattr(server.run, "ASK_AGAIN_S", 0.1)
    of = study(stages=content()["stages"][:1], participation={"deadline_s": 0.4, "retries": 1})
    with pytest.raises(RunError, match="east failed"):
        run_study(of, Stranger(workers(of, pair)), tmp_path / "run")
    assert 1 <= len(asked) <= 5


def test_a_site_that_is_still_starting_is_waited_for_at_the_start(finished: Finished, tmp_path: Path) -> None:
    class Starting(Remembered):
        asked = 0

        def enrol(
            self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
        ) -> Mapping[str, bytes | Failure]:
            self.asked += 1
            found = super().enrol(request, known)
            return found if self.asked > 3 else {name: found[name] for name in found if name != "east"}

    with pytest.raises(RunError, match="needs 1 target site"):
        run_study(finished.study, Starting(finished.transport), tmp_path / "hasty")
    run_study(finished.study, Starting(finished.transport), tmp_path / "run", enrol_s=20)
    assert RunFolder(tmp_path / "run").model.read_bytes() == RunFolder(finished.run).model.read_bytes()


def test_a_study_that_no_site_approved_is_told_at_once(finished: Finished, tmp_path: Path) -> None:
    class Strangers(Remembered):
        asked = 0

        def enrol(
            self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
        ) -> Mapping[str, bytes | Failure]:
            self.asked += 1
            return dict.fromkeys(self.workers, pack(refusal("not-approved")))

    strangers = Strangers(finished.transport)
    with pytest.raises(RunError, match=r"north: not-approved: .*`crossprobe site approve`"):
        run_study(finished.study, strangers, tmp_path, enrol_s=1)
    assert strangers.asked == 1


def test_the_status_tells_a_pause_only_of_a_run_that_goes_on(tmp_path: Path) -> None:
    RunFolder(tmp_path).flower.write_text('{"run_id": "1", "address": "localhost:1", "ca": ""}')
    left = Pause("2026-01-01T00:00:00+00:00", "2026-01-01T00:30:00+00:00", 2, "refine", 3, {"target": (0, 1)}, {})
    pause.write(tmp_path, left)

    def status(flower: str) -> Pause | None:
        cli: Any = SimpleNamespace(status=lambda run_id: flower, nodes=list)
        return deployment.status(cli, tmp_path).paused

    paused = status("running")
    assert paused is not None
    assert paused.sentence() == left.sentence()
    assert status("finished:failed") is None


def test_the_status_tells_losses_and_the_time_left(finished: Finished, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(finished.run, tmp_path / "run"))
    run.flower.write_text('{"run_id": "1", "address": "localhost:1", "ca": ""}')
    lines = run.history.read_text().splitlines(keepends=True)
    run.history.write_text("".join(lines[:-1]))  # the closing rounds before it have no loss

    def status(flower: str) -> deployment.Status:
        cli: Any = SimpleNamespace(status=lambda run_id: flower, nodes=list)
        return deployment.status(cli, run.path)

    found, records = status("running"), history.read(run.path)
    assert found.rounds_done == found.rounds - 1
    assert found.left_s == pytest.approx(median(record.seconds for record in records))
    losses = [record.sites["north"].metrics.get("loss") for record in records]
    assert losses[-1] is None
    assert found.sites["north"].loss == next(loss for loss in reversed(losses) if loss is not None)
    assert status("finished:completed").left_s is None


def test_a_run_killed_in_its_pause_begins_without_one(finished: Finished, tmp_path: Path) -> None:
    class Killed(BaseException):
        """Nothing in the code may catch this."""

    class Dying(Leaving):
        def enrol(
            self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
        ) -> Mapping[str, bytes | Failure]:
            found = super().enrol(request, known)
            if self.exchanges:
                raise Killed
            return found

    dying = Dying(finished, tmp_path, at=3, vain=2)
    with pytest.raises(Killed):
        run_study(finished.study, dying, tmp_path)
    assert dying.seen[0] is not None
    pause.write(tmp_path, dying.seen[0])  # which a process that is killed from outside does not remove
    seen: list[Pause | None] = []
    again = Remembered(finished.transport)
    run_study(finished.study, again, tmp_path, resume=True, on_round=lambda _: seen.append(pause.read(tmp_path)))
    assert seen
    assert not any(seen)
    assert RunFolder(tmp_path).model.read_bytes() == RunFolder(finished.run).model.read_bytes()
    assert [(r.round, r.counted) for r in history.read(tmp_path)][2:4] == [(2, False), (2, True)]


@pytest.mark.parametrize("code", ["old-round", "round-answered"])
def test_a_study_that_was_answered_in_another_run_ends_at_once_with_what_to_do(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    class Answered(Remembered):
        def exchange(
            self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
        ) -> Iterator[tuple[str, bytes | Failure]]:
            return ((site, pack(refusal(code))) for site in requests)

    monkeypatch.setattr(server.run, "_pause", lambda *arguments: pytest.fail("it was asked again"))
    with pytest.raises(RunError, match=r"answered before, in another run, by \w+, \w+\. .*approve --restart") as error:
        run_study(finished.study, Answered(finished.transport), tmp_path / "run")
    assert "bring the sites back" not in str(error.value)
    assert len(history.read(tmp_path / "run")) == 1
