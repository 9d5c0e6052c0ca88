"""A whole run that tests share."""

from dataclasses import dataclass
from pathlib import Path

from tiny import Between

from common.study import Study
from server.state import ServerState


@dataclass(frozen=True)
class Finished:
    """A whole run over one source and one target, with all that went over the wire."""

    study: Study
    run: Path
    transport: Between
    state: ServerState
