"""SIGTERM and SIGINT, waited for so that none is missed."""

import os
import signal

_STOPS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Takes SIGTERM and SIGINT from its making on, for the rest of the process; made in the main thread.

    Not an event that a handler sets. Python runs a handler between two steps of the main thread: if the signal comes
    just before that thread falls asleep, or interrupts another one, the handler waits for a step that never comes. The
    interpreter writes each signal's number into a pipe at once, whichever thread it interrupts.
    """

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for sort in _STOPS:
            signal.signal(sort, lambda *_: None)

    def wait(self) -> None:
        """Return once one of them has come, be it before this was called."""
        while os.read(self._reader, 1)[0] not in _STOPS:
            pass
