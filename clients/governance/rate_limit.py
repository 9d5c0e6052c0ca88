"""How much messages may add to the ledger that bring nothing new: refusals, enrolments, replies given again.

A task's new reply is one of the rounds of an approved study, which have an end. All else has none: shipped
code could ask on until the hospital's disk is full, and then nothing could leave any more.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

#: Bytes of lines without their hashes: some hundred whole requests at once, and then one every half minute, which is
#: more than a coordinator asks for who tries again and again; and about 10 GB in a year of flood.
BYTES, PER_HOUR = 4 << 20, 1 << 20


class RateLimit:
    """A bucket that lines of the ledger fill and time empties. A new worker's is empty.

    Args:
        clock: seconds from any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._used, self._then = 0.0, clock()

    def left(self) -> bool:
        """Whether another message may be written down."""
        return self._drained() < BYTES

    def use(self, *lines: Mapping[str, Any]) -> None:
        """Count lines of the ledger."""
        self._used = self._drained() + sum(len(json.dumps(line)) for line in lines)

    def _drained(self) -> float:
        now = self.clock()
        self._used, self._then = max(0.0, self._used - (now - self._then) * PER_HOUR / 3600), now
        return self._used
