"""What is wrong with a site's folder, in words for the person who can repair it.

Findings are shown at the hospital only and may therefore name its files; they are never sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import CrossProbeError


@dataclass(frozen=True)
class Finding:
    """One thing to repair: a stable code, the place, expected and found, and the repair."""

    code: str
    where: str
    message: str
    remedy: str

    def __str__(self) -> str:
        line = f"{self.code}: {self.where}: {self.message}. {self.remedy}."
        # A cell of the table may hold line breaks or terminal codes; a finding stays one line.
        return "".join(letter if letter.isprintable() else "?" for letter in line)


class SiteFolderError(CrossProbeError):
    """A site's folder cannot be used; `findings` holds every reason, `str()` one line for each."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))

    def __reduce__(self) -> tuple[type["SiteFolderError"], tuple[tuple[Finding, ...]]]:
        # The default would rebuild from the text; errors cross process borders in data loaders.
        return type(self), (self.findings,)
