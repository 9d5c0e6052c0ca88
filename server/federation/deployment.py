"""A study between hospitals, as the coordinator drives it: submit, follow, look, stop, go on."""

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from common.errors import CrossProbeError, RunError
from common.files import write_atomically
from common.run_folder import RunFolder
from common.study import load_study, read_study_of_run
from server import history, pause
from server.federation.flower_cli import FlowerCli, UnknownRun
from server.history import RoundRecord
from server.pause import Pause

#: Written to a run's folder and removed before it is submitted.
ROOM_BYTES = 2**16


@dataclass(frozen=True)
class FlowerRun:
    """The Flower run that writes a run's folder."""

    run_id: str
    address: str
    ca: str


@dataclass(frozen=True)
class SiteStatus:
    """How a site does.

    Attributes:
        state: `connected`, or as `server.history.state_of` has it; `lost` where its SuperNode is offline.
        detail: why it is not well.
        loss: of the last round in which it told one.
    """

    state: str
    last_round: int | None
    seconds: float
    detail: str
    loss: float | None = None


@dataclass(frozen=True)
class Status:
    """How a run does: Flower's word for it, the last round, the sites, the ServerApp's error if it left one.

    Attributes:
        paused: the sites that the run waits for, or None.
        left_s: seconds that the rounds to come will take, or None where nothing tells.
    """

    flower: str
    rounds_done: int
    rounds: int
    stage: str
    sites: Mapping[str, SiteStatus]
    error: str
    paused: Pause | None = None
    left_s: float | None = None


def start(cli: FlowerCli, study: Path, out: Path, *, resume: bool = False) -> str:
    """Submit a study and return Flower's id of the run.

    With `resume`, the Flower run that wrote the folder before is stopped first: two would write one checkpoint.

    Raises:
        NoLongerFollowing: on Ctrl-C while it was submitted.
        RunError: if the folder holds a run and `resume` is not given, or something else, or the SuperLink does not
            accept it.
    """
    load_study(study)  # its errors here, not a minute later from the ServerApp
    folder = RunFolder(out)
    if not resume:
        folder.refuse_a_run()
    folder.refuse_others_files()
    folder.make()
    with folder.writing():
        folder.error.unlink(missing_ok=True)
        write_atomically(folder.room, bytes(ROOM_BYTES))  # a full disk is told now, not by a run that cannot say so
        folder.room.unlink()
    if resume and folder.flower.exists():
        with suppress(UnknownRun):  # a SuperLink with a new database: what it never had does not write here
            stop(cli, out)
    with _uninterrupted():  # a run that nobody has the number of could not be stopped
        run_id = cli.submit({"study": str(study.resolve()), "out": str(out.resolve()), "resume": resume})
        run = FlowerRun(run_id, cli.address, str(cli.ca.resolve()) if cli.ca else "")
        write_atomically(folder.flower, json.dumps(asdict(run)).encode())
    return run_id


class NoLongerFollowing(KeyboardInterrupt):
    """Ctrl-C once a study was started, which goes on without whoever started it."""


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back, of what is started within the block too, until its end; then raise NoLongerFollowing."""
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))  # another thread may receive it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what a started process has, too
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if came:
        raise NoLongerFollowing


def run_of(out: Path) -> FlowerRun:
    """Return the Flower run that writes a folder. Raises RunError if none was started there."""
    try:
        return FlowerRun(**json.loads(RunFolder(out).flower.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        if RunFolder(out).state.exists():
            raise RunError(
                f"the run in {out} was not started by `crossprobe study run`. See it with: crossprobe report {out}, or "
                f"crossprobe study watch {out}"
            ) from None
        raise RunError(
            f"{out} holds no run that was started by `crossprobe study run`. Start one with: "
            f"crossprobe study run STUDY --out {out}"
        ) from None


def stop(cli: FlowerCli, out: Path) -> bool:
    """Stop the Flower run that writes a folder; return whether it was still going.

    Raises:
        RunError: if there is none, or it cannot be stopped.
    """
    run = run_of(out)
    if cli.status(run.run_id).startswith("finished"):
        return False
    cli.stop(run.run_id)
    return True


def follow(cli: FlowerCli, run_id: str, out: Path, on_round: Callable[[RoundRecord], None]) -> None:
    """Wait for a run's end, telling each new record of its history.

    Raises:
        RunError: if it failed; with the sites that are registered and not connected, whatever it failed of.
    """
    seen = len(history.read(out))

    def poll() -> None:
        nonlocal seen
        records = history.read(out)
        seen = min(seen, len(records))  # a resumed run dropped what its checkpoint does not hold
        for record in records[seen:]:
            on_round(record)
        seen = len(records)

    try:
        cli.follow(run_id, out, poll)
    except RunError as error:
        raise RunError("\n".join([str(error), *_away(cli)])) from None


def _away(cli: FlowerCli) -> list[str]:
    """Return a sentence that names the registered sites whose SuperNode is not connected, if there are any."""
    try:
        names = sorted(node.name for node in cli.nodes() if not node.online)
    except RunError:  # the SuperLink is away itself, which the run's own error tells
        return []
    if not names:
        return []
    return [
        f"Registered and not connected now: {', '.join(names)}. There, `docker compose logs supernode` tells more, and "
        "`crossprobe doctor --address HOST:PORT --ca ca.crt` looks at name, certificate and clock."
    ]


def status(cli: FlowerCli, out: Path) -> Status:
    """Return how a run does.

    Raises:
        RunError: if no run was started there or the SuperLink does not answer.
    """
    run = run_of(out)
    flower = cli.status(run.run_id)
    online = {node.node_id for node in cli.nodes() if node.online}
    records = history.read(out)
    counted = [record for record in records if record.counted]
    done = counted[-1].round + 1 if counted else 0
    try:
        study = read_study_of_run(out)
        rounds, deadline_s = len(study.rounds()), study.participation.deadline_s
        left_s = history.time_left(study, done, records, timedelta())
    except CrossProbeError:  # still enrolling
        rounds, deadline_s, left_s = 0, 0.0, None
    nodes = nodes_of(out)
    names = sorted({name for record in records for name in record.sites} | nodes.keys())
    sites = {name: _site(name, records, nodes.get(name), online, deadline_s) for name in names}
    message = RunFolder(out).error
    error = message.read_text(encoding="utf-8") if message.exists() else ""
    stage = records[-1].stage if records else "enrolment"
    # A run that was killed in its pause left the file.
    paused = None if flower.startswith("finished") else pause.read(out)
    return Status(flower, done, rounds, stage, sites, error, paused, None if flower.startswith("finished") else left_s)


def nodes_of(out: Path) -> dict[str, str]:
    """Return the node id behind each site's name, as the ServerApp found them at enrolment."""
    try:
        nodes: dict[str, str] = json.loads(RunFolder(out).nodes.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return nodes


def _site(name: str, records: list[RoundRecord], node: str | None, online: set[str], deadline_s: float) -> SiteStatus:
    offline = node is not None and node not in online
    last = next((record for record in reversed(records) if name in record.sites), None)
    if last is None:
        return SiteStatus("lost" if offline else "connected", None, 0.0, "")
    seen = last.sites[name]
    state, why = history.state_of(seen, deadline_s)
    told = (record.sites[name].metrics.get("loss") for record in reversed(records) if name in record.sites)
    loss = next((value for value in told if value is not None), None)
    shown = "lost" if offline else "connected" if state == "in" else state
    return SiteStatus(shown, last.round, seen.seconds, why, loss)
