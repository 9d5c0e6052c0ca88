"""The page on a run that goes on, from its folder alone: where it stands, who is in, what did not count."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import sleep
from typing import Any, Literal, NamedTuple, Self

from common.errors import CrossProbeError
from common.run_folder import RunFolder
from common.study import Study, read_study_of_run
from server import history, pause
from server.history import RoundRecord
from server.pause import Pause
from server.report import curves, tables
from server.report.environment import environment
from server.report.page import MOST_PROBLEMS
from server.report.spread import MANY_SITES
from server.state import Participant, ServerState, load_state

TEMPLATE = "live.html.j2"
#: Beyond its deadline a round still aggregates and saves; a run that is silent for longer has most likely ended.
SILENT_S = 120.0

SiteState = Literal[history.SiteState, "paused", "not asked yet"]


@dataclass(frozen=True)
class SiteNow:
    """How a site does, as far as the run's folder tells.

    Attributes:
        state: as `server.history.state_of` has it, or `paused` (the run waits for it).
        why: of a state that is not `in`.
    """

    name: str
    participant: Participant
    state: SiteState
    why: str
    last_round: int | None
    seconds: float


class StageNow(NamedTuple):
    """A stage of the study: how many of its rounds are done, and seconds and bytes of all attempts, None before one."""

    name: str
    rounds: int
    done: int
    used: tables.Traffic | None


@dataclass(frozen=True)
class Run:
    """What a run's folder says at one moment.

    Attributes:
        study: None until the run has written it; `state`: until all sites are enrolled.
        begun: when the run was last started from `crossprobe study run`, if it was.
        touched: when a file in the folder was last made, replaced or removed, such as that of a pause.
        of_baseline: it is the run of a simulation's baseline, after which the study's own begins.
    """

    study: Study | None
    state: ServerState | None
    records: Sequence[RoundRecord]
    paused: Pause | None
    error: str
    finished: bool
    begun: datetime | None
    touched: datetime
    of_baseline: bool = False

    @classmethod
    def read(cls, run: Path) -> Self:
        """Read it. Raises CrossProbeError or OSError if it is damaged, or while the server replaces its files."""
        folder = RunFolder(run)
        if not folder.study.exists() and folder.baseline.study.exists():
            return replace(cls.read(folder.baseline.path), of_baseline=True, finished=False)
        error = folder.error.read_text(encoding="utf-8") if folder.error.exists() else ""
        begun = _changed(folder.flower) if folder.flower.exists() else None
        touched = _changed(folder.path)
        if not folder.study.exists():
            return cls(None, None, [], None, error, finished=False, begun=begun, touched=touched)
        study = read_study_of_run(run)
        state = load_state(folder.checkpoint, study.hash())
        records, paused = history.read(run), pause.read(run)
        return cls(study, state, records, paused, error, folder.model.exists(), begun, touched)

    @property
    def round_began(self) -> datetime | None:
        """When the round that goes on began, at about: the one before had ended and the run had been started."""
        if not self.records:
            return self.begun
        last = self.records[-1]
        ended = datetime.fromisoformat(last.started).astimezone(UTC) + timedelta(seconds=last.seconds)
        return max(ended, self.begun or ended)

    def silent(self, now: datetime) -> bool:
        """Return whether the round that goes on should have ended, and nothing tells of it."""
        if self.study is None or self.round_began is None:
            return False
        patience = timedelta(seconds=self.study.participation.deadline_s + SILENT_S)
        return now > max(self.round_began, self.touched) + patience


def _changed(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def live_page(run: Run, now: datetime) -> str:
    """Return the page on a run at the time `now` (UTC)."""
    content: dict[str, Any] = {"study": run.study, "headline": _headline(run, now), "error": run.error}
    content |= {"updated": f"{now:%Y-%m-%d %H:%M:%S}", "paused": run.paused, "most_problems": MOST_PROBLEMS}
    if run.study is not None:
        content |= _content(run, run.study, run.state or ServerState(round=0, components={}), now)
    return environment().get_template(TEMPLATE).render(content)


def _content(run: Run, study: Study, state: ServerState, now: datetime) -> dict[str, Any]:
    rounds = curves.rounds(state, run.records)
    every, began = study.rounds(), run.round_began
    again = bool(run.records) and not run.records[-1].counted  # asked again after a pause that may have been long
    traffic = tables.traffic(run.records)
    sites = sites_now(study, state, run.records, run.paused)
    return {
        "state": state,
        "total": len(every),
        "stages": stages_now(study, run.records),
        "round_began": began,
        "deadline": began + timedelta(seconds=study.participation.deadline_s) if began and not again else None,
        "left_s": history.time_left(study, state.round, run.records, now - began if began else timedelta()),
        "counts": Counter(site.state for site in sites),
        "sites": [site for site in sites if site.state != "in"][:MANY_SITES] if len(sites) > MANY_SITES else sites,
        "site_count": len(sites),
        "score_chart": curves.score_chart(study, state, rounds),
        "loss_charts": curves.loss_charts(study, state, run.records),
        "bands": curves.bands(study),
        "last": rounds[-1] if rounds else None,
        "problems": tables.problems(run.records)[::-1],
        # the checkpoint counts attempts that a resumed run dropped, and not yet those at the round that goes on
        "to_sites": max(state.bytes_to_sites, sum(row.to_sites for row in traffic)),
        "from_sites": max(state.bytes_from_sites, sum(row.from_sites for row in traffic)),
        "seconds": sum(record.seconds for record in run.records),
    }


def _headline(run: Run, now: datetime) -> str:
    if run.error:
        return "Ended with an error. What was saved is whole: mend the cause, then go on with --resume."
    if run.study is None or run.state is None:
        return "Sites are being enrolled; no round has begun."
    every = run.study.rounds()
    first = "The baseline first: " if run.of_baseline else ""
    if run.state.round >= len(every):
        return f"{first}all rounds are done; the model is being written.".capitalize()
    where = f"{first}Round {run.state.round}, stage {every[run.state.round].stage.name}"
    if run.paused is not None:
        return f"{where}: paused until {' and '.join(run.paused.sites)} can be reached again."
    if run.silent(now):
        return f"{where}: nothing was written since the round's deadline; the run has most likely ended. See its log."
    return f"{where}, goes on."


def stages_now(study: Study, records: Sequence[RoundRecord]) -> list[StageNow]:
    """Return every stage of the study in order, the engine's closing ones included."""
    used = {row.stage: row for row in tables.traffic(records)}
    return [
        StageNow(band.name, band.rounds, own.rounds if (own := used.get(band.name)) else 0, own)
        for band in curves.bands(study)
    ]


def sites_now(study: Study, state: ServerState, records: Sequence[RoundRecord], paused: Pause | None) -> list[SiteNow]:
    """Return all participants, those first that the coordinator should look at."""
    last: dict[str, RoundRecord] = {}
    for record in records:
        last |= dict.fromkeys(record.sites, record)
    away: Mapping[str, str] = paused.sites if paused else {}
    found = [
        _site(name, participant, last.get(name), away, study.participation.deadline_s)
        for name, participant in state.participants.items()
    ]
    order: tuple[SiteState, ...] = ("paused", "lost", "refused", "slow", "not asked yet", "in")
    return sorted(found, key=lambda site: (order.index(site.state), site.name))


def _site(
    name: str, participant: Participant, last: RoundRecord | None, away: Mapping[str, str], deadline_s: float
) -> SiteNow:
    if last is None:
        return SiteNow(name, participant, "not asked yet", "", None, 0.0)
    own = last.sites[name]
    if name in away:
        return SiteNow(name, participant, "paused", away[name], last.round, own.seconds)
    state, why = history.state_of(own, deadline_s)
    return SiteNow(name, participant, state, why, last.round, own.seconds)


def read_patiently(run: Path) -> Run:
    """Return `Run.read`, up to twice more where the server was just replacing the checkpoint. Raises as it does."""
    for _ in range(2):
        try:
            return Run.read(run)
        except (CrossProbeError, OSError):
            sleep(0.2)
    return Run.read(run)
