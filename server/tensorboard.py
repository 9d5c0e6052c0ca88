"""TensorBoard event files of a run: losses, score and Dice, a step for each round that counted.

    DIR/study       the run
    DIR/baseline    its baseline, where it has one

Tags are `MEASURE/SITE` for what measures the received model in every stage, `MEASURE/STAGE/SITE` for a stage's own
numbers, which two stages do not share, and `test_MEASURE/SITE/PREDICTOR` for the evaluation. Coordinator's eyes only,
like the run's folder: the numbers are those of single sites.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from common.errors import RunError
from common.files import private_folder
from common.metric_name import MEASURES, PREDICTORS, MetricName
from common.run_folder import RunFolder
from server import history
from server.history import RoundRecord

#: What measures the model that a site received, whatever the stage.
OF_THE_MODEL = ("score", "val_dice")
#: At the end of our files' names: what TensorBoard's other writers left in the folder stays.
SUFFIX = ".crossprobe"


def scalars(record: RoundRecord) -> Iterator[tuple[str, float]]:
    """Yield tag and value of all that one round shows."""
    if record.score is not None:
        yield "score/all_sites", record.score
    for site, own in record.sites.items():
        for name, value in own.metrics.items():
            if "/" not in name:
                yield (f"{name}/{site}" if name in OF_THE_MODEL else f"{name}/{record.stage}/{site}"), value
        for predictor in PREDICTORS:
            for measure in MEASURES:
                mean = own.metrics.get(str(MetricName(predictor, measure, "mean")))
                if mean is not None:
                    yield f"test_{measure}/{site}/{predictor}", mean


class Events:
    """Event files that follow a run as it goes on. They begin anew with each start: what is in the run goes in whole.

    Raises:
        RunError: if the folder cannot be written.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        folders = RunFolder(run)
        runs = {"study": folders.path, "baseline": folders.baseline.path}
        self._files = [_EventFile(path, folder / name) for name, path in runs.items()]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for file in self._files:
            self._stack.callback(file.close)
        self.update()
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        self._stack.close()

    def update(self) -> None:
        """Write the rounds that came since."""
        for file in self._files:
            file.update()


@contextmanager
def following(run: Path, folder: Path | None) -> Iterator[Callable[[], None]]:
    """Yield what is to be called after each round: it writes events into `folder`, or nothing where there is none.

    Raises:
        RunError: if the folder cannot be written.
    """
    if folder is None:
        yield lambda: None
        return
    with Events(run, folder) as events:
        yield events.update


class _EventFile:
    """The events of one run, in a folder that is made with the first of them."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.run, self.folder = run, folder
        self._written: set[int] = set()
        self._writer: Any = None
        for old in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
            old.unlink(missing_ok=True)

    def update(self) -> None:
        # A round that a resumed run repeats has the numbers that it had.
        for record in history.read(self.run):
            if record.counted and record.round not in self._written:
                self._written.add(record.round)
                self._add(record)

    def _add(self, record: RoundRecord) -> None:
        # Torch comes with them, so only where they are asked for. `SummaryWriter` would write by a thread, and not yet.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        try:
            if self._writer is None:
                private_folder(self.folder)
                self._writer = EventsWriter(str(self.folder / "events"), SUFFIX)
            when = datetime.fromisoformat(record.started).timestamp() + record.seconds
            for tag, value in scalars(record):
                self._writer.write_event(Event(wall_time=when, step=record.round, summary=scalar(tag, value)))
            self._writer.flush()
        except OSError as error:
            raise RunError(f"cannot write {self.folder}: {error.strerror}. Choose another --tensorboard.") from None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
