"""Whose updates a round under masks is laid bare with: on disk before the first site is asked.

A site helps with one set of sites only (`common.masking`). A server that forgot which, because it fell or a site did
not answer, could never finish the round.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from common.components import Role
from common.errors import RunError
from common.files import write_atomically
from common.run_folder import GO_ON
from common.strict_text import parse_json


class Survivors:
    """The sets of a run's present round.

    Args:
        file: need not exist yet; None keeps them in memory alone.

    Raises:
        RunError: if the file is damaged.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._known: dict[str, tuple[str, list[str]]] = {}
        if file is not None and file.exists():
            try:
                content = parse_json(file.read_bytes(), origin=file.name)
                self._known = {role: (str(one[0]), [str(site) for site in one[1]]) for role, one in content.items()}
            except (OSError, ValueError, TypeError, AttributeError, IndexError):
                raise RunError(
                    f"{file} is damaged: with whose updates the last round is to be summed is not known. Restore it "
                    "from a backup. Without one, remove it; if sites then refuse the round, each has to approve the "
                    "study again with --restart, and the study begins anew."
                ) from None

    def of(self, role: Role, request: str) -> list[str] | None:
        """Return the sites whose sum is to be laid bare, or None if that is not settled yet.

        Args:
            request: SHA-256 of the role's request, which is another for each round.
        """
        known, sites = self._known.get(role, ("", []))
        return sites if known == request else None

    def settle(self, role: Role, request: str, sites: Sequence[str]) -> None:
        """Bring the sites to the disk. Raises RunError if that fails."""
        self._known[role] = (request, sorted(sites))
        if self.file is not None:
            write_atomically(self.file, json.dumps(self._known, indent=1).encode(), then=GO_ON)
