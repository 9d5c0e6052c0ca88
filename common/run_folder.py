"""A run's folder: the name of every file in it, once, and who may write it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import RunError
from common.files import exclusive, private_folder
from common.release import RELEASE, WEIGHTS

#: What to do once a run's files can be written again.
GO_ON = "start again with --resume"


class _In:
    """A file or folder of a run, by its place in the run's folder."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __get__(self, run: "RunFolder", owner: type["RunFolder"]) -> Path:
        return run.path / self.place


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. Coordinator's eyes only: it holds numbers of single sites, so its mode is 0700."""

    path: Path

    #: The resolved study with its hash.
    study = _In("study.yaml")
    #: The study as a simulation hands it to its processes.
    study_input = _In("input.yaml")
    #: The folder of the server's state after the last round, see `server.state`.
    checkpoint = _In("checkpoint")
    #: The state file of the checkpoint: a folder that has it holds a run.
    state = _In("checkpoint/state.json")
    #: One line a round, see `server.history`.
    history = _In("history.jsonl")
    #: Which sites a round waits for, there for as long as it does, see `server.pause`.
    paused = _In("paused.json")
    #: Whose updates the present round sums under masks, see `server.survivors`.
    survivors = _In("survivors.json")
    #: The folder of the final model with study, card and hashes, see `common.release`; it alone may be passed on.
    release = _In(RELEASE)
    #: The final model, there once the release is whole.
    model = _In(f"{RELEASE}/{WEIGHTS}")
    #: What was found, for machines.
    summary = _In("summary.json")
    #: What was found, for people.
    report = _In("report.html")
    #: The report's pictures, where the sites' folders were at hand, see `server.report.drawn`.
    drawn = _In("drawn.json")
    #: The ServerApp's last words, where it did not end well.
    error = _In("error.txt")
    #: Flower's node id behind each site's name.
    nodes = _In("nodes.json")
    #: Which Flower run writes the folder, and where.
    flower = _In("flower.json")
    #: Written and removed before a run is submitted: a full disk is told at once.
    room = _In(".room")
    #: Held by the process that writes.
    lock = _In("run.lock")

    @property
    def baseline(self) -> "RunFolder":
        """A simulation's run of the baseline, a folder like this."""
        return RunFolder(self.path / "baseline")

    def make(self) -> None:
        """Make the folder where it is missing. Raises RunError."""
        with self.writing():
            private_folder(self.path)

    def refuse_a_run(self) -> None:
        """Raise RunError if the folder holds a run already."""
        if self.state.exists():
            raise RunError(
                f"{self.path} already holds a run. Continue it with --resume, or choose another --out folder."
            )

    def refuse_others_files(self) -> None:
        """Raise RunError if the folder holds anything, and no run ever began there: the kits with their keys, say."""
        with self.writing():
            begun = self.lock.exists() or self.flower.exists()
            found = sorted(path.name for path in self.path.iterdir()) if self.path.exists() and not begun else []
        if found:
            raise RunError(
                f"expected {self.path} to be empty, the folder of a run or not to exist, found {', '.join(found[:5])}. "
                "Give the run a folder of its own with --out."
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the disk refuses within the block into RunError."""
        try:
            yield
        except OSError as error:
            raise RunError(f"cannot write to {self.path}: {error.strerror}. Choose another --out folder.") from None

    @contextlib.contextmanager
    def only_one(self, wait_s: float = 0.0) -> Iterator[None]:
        """Make the folder and hold its lock for as long as the block runs: two writers would mix two runs.

        Raises:
            RunError: if another process holds it for longer than `wait_s` seconds, or nothing can be written.
        """
        self.make()
        taken = f"another process is still at work in {self.path}. Wait for it to end, or stop it first."
        with exclusive(self.lock, taken, wait_s=wait_s):
            yield
