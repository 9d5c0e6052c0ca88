"""Long work of the desk: one at a time, in a thread beside the pages, which show how far it is and may stop it."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from common.errors import CrossProbeError

log = logging.getLogger("crossprobe.desk")


class DeskError(CrossProbeError):
    """Something that cannot be done now, in words for the page; nothing was changed."""


class Stopped(Exception):
    """A person stopped the work."""


@dataclass
class Work:
    """Long work in the background: what, how far (0 of 0: not known), and its error once it failed.

    Attributes:
        page: where its result will be shown.
        stopping: a person asked for its end, which comes with its next progress.
    """

    what: str
    page: str
    done: float = 0
    total: int = 0
    error: str = ""
    stopping: bool = False
    _begun: float = field(default_factory=time.monotonic)

    def progress(self, done: float, total: int) -> None:
        """Note how far it is. Raises Stopped where nobody wants the rest."""
        if self.stopping:
            raise Stopped
        if done < self.done:  # another part of the work
            self._begun = time.monotonic()
        self.done, self.total = done, total

    @property
    def look_again_s(self) -> int:
        """Seconds after which a page looks again: seldom in long work, for a keyboard's place on it is lost then."""
        return 3 if time.monotonic() - self._begun < 20 else 15

    @property
    def left_s(self) -> float | None:
        """Seconds that are left at the pace so far, or None where nothing tells."""
        passed = time.monotonic() - self._begun
        return passed * (self.total - self.done) / self.done if self.done else None


class Background:
    """The one place for such work.

    Attributes:
        work: what goes on, or what failed last; None before the first and once all is well.
    """

    def __init__(self) -> None:
        self.work: Work | None = None
        self._lock = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether work goes on."""
        work = self.work  # it may end between two looks
        return work is not None and not work.error

    def begin(self, what: str, page: str, run: Callable[[Work], None]) -> None:
        """Start `run`, which tells its progress, and return. Raises DeskError while other work goes on."""
        work = Work(what, page)
        with self._lock:
            if self.busy:
                raise DeskError("Other work goes on here. Wait until it has ended, then try again.")
            self.work = work

        def whole() -> None:
            try:
                run(work)
            except Stopped:
                self.work = None
            except CrossProbeError as error:
                work.error = str(error)
            except Exception:  # of any kind: a page that says nothing would leave a person waiting
                log.exception("%s", work.what)
                work.error = f"{work.what} failed; the desk's log says why."
            else:
                self.work = None

        threading.Thread(target=whole, name="desk-work", daemon=True).start()

    def stop(self) -> str:
        """End the work, which leaves nothing behind, and return the page that it was for.

        Raises:
            DeskError: if there is none, or it does not tell how far it is.
        """
        work = self.work
        if work is None or work.error:
            raise DeskError("Nothing goes on here any more. Nothing was changed.")
        if not work.total:
            raise DeskError("This work cannot be stopped now. Nothing was changed: it ends by itself.")
        work.stopping = True
        return work.page
