"""A run's folder: the name of every file in it, once, and who may write it.

study.yaml          the resolved study with its hash
input.yaml          the study as a simulation hands it to its processes
checkpoint/         the server's state after the last round, see `server.state`
history.jsonl       a line a round, see `server.history`
paused.json         which sites a round waits for, see `server.pause`
survivors.json      whose updates the present round sums under masks, see `server.survivors`
release/            the final model with study, card and hashes, see `common.release`; it alone may be passed on
summary.json        what was found, for machines
report.html         the same for people
drawn.json          the report's pictures, where the sites' folders were at hand, see `server.report.drawn`
error.txt           why the ServerApp ended, where it did not end well
nodes.json          Flower's node behind each site's name
flower.json         which Flower run writes the folder, and where
run.lock            held by the process that writes
baseline/           a simulation's run of the baseline, a folder like this
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import RunError
from common.files import exclusive, private_folder
from common.release import RELEASE, WEIGHTS


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. Coordinator's eyes only: it holds numbers of single sites, so its mode is 0700."""

    path: Path

    @property
    def study(self) -> Path:
        """The resolved study with its hash."""
        return self.path / "study.yaml"

    @property
    def study_input(self) -> Path:
        """The study as a simulation hands it to its processes."""
        return self.path / "input.yaml"

    @property
    def checkpoint(self) -> Path:
        """The folder of the server's state."""
        return self.path / "checkpoint"

    @property
    def state(self) -> Path:
        """The state file of the checkpoint: a folder that has it holds a run."""
        return self.checkpoint / "state.json"

    @property
    def history(self) -> Path:
        """One line a round."""
        return self.path / "history.jsonl"

    @property
    def paused(self) -> Path:
        """There while a round waits for sites."""
        return self.path / "paused.json"

    @property
    def survivors(self) -> Path:
        """Whose updates the present round sums under masks."""
        return self.path / "survivors.json"

    @property
    def release(self) -> Path:
        """The folder of the final model, the only one without numbers of single sites."""
        return self.path / RELEASE

    @property
    def model(self) -> Path:
        """The final model, written last."""
        return self.release / WEIGHTS

    @property
    def summary(self) -> Path:
        """What was found, for machines."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """What was found, for people."""
        return self.path / "report.html"

    @property
    def drawn(self) -> Path:
        """The report's pictures."""
        return self.path / "drawn.json"

    @property
    def error(self) -> Path:
        """The ServerApp's last words, where it did not end well."""
        return self.path / "error.txt"

    @property
    def nodes(self) -> Path:
        """Site name -> Flower's node id."""
        return self.path / "nodes.json"

    @property
    def flower(self) -> Path:
        """The Flower run that writes the folder."""
        return self.path / "flower.json"

    @property
    def room(self) -> Path:
        """Written and removed before a run is submitted: a full disk is told at once."""
        return self.path / ".room"

    @property
    def lock(self) -> Path:
        """Held by the process that writes."""
        return self.path / "run.lock"

    @property
    def baseline(self) -> "RunFolder":
        """A simulation's run of the baseline."""
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
