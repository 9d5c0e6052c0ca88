"""paused.json: while a round waits for sites to come back, which they are and since when."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from common.components import Role
from common.files import write_atomically
from common.run_folder import RunFolder


@dataclass(frozen=True)
class Pause:
    """A round that fell short of quorum and has not been asked again yet.

    Attributes:
        since: when it fell short for the first time (UTC).
        until: when it is asked again even if nobody came back.
        attempts_left: how often it is asked again before the run ends, resumable.
        lacking: role -> how many sites of it are there, and how many the round needs.
        sites: name of each site of these roles that is away -> why, as far as the server knows.
    """

    since: str
    until: str
    round: int
    stage: str
    attempts_left: int
    lacking: Mapping[Role, tuple[int, int]]
    sites: Mapping[str, str]

    def sentence(self) -> str:
        """Return the pause in words."""
        roles = ", ".join(f"{least} {role} site(s) and has {there}" for role, (there, least) in self.lacking.items())
        away = "; ".join(f"{name} {why}" for name, why in self.sites.items())
        return (
            f"paused since {self.since}: round {self.round} ({self.stage}) needs {roles}: {away}. It goes on by itself "
            f"when they are back. Asked again at the latest at {self.until}; after {self.attempts_left} more "
            "attempt(s) the run ends, with everything saved."
        )


def write(run: Path, pause: Pause) -> None:
    """Bring a pause to the disk. Raises RunError."""
    write_atomically(RunFolder(run).paused, json.dumps(asdict(pause)).encode())


def read(run: Path) -> Pause | None:
    """Return the pause that a run is in, if any."""
    try:
        return Pause(**json.loads(RunFolder(run).paused.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def clear(run: Path) -> None:
    """Say that a run goes on. Raises RunError."""
    folder = RunFolder(run)
    with folder.writing():
        folder.paused.unlink(missing_ok=True)
