"""What is wrong with a site's folder, in words for the person who can repair it.

Findings are shown at the hospital only and may therefore name its files; they are never sent.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.errors import CrossProbeError
from common.plain_words import one_line


@dataclass(frozen=True)
class Finding:
    """One thing to repair: a stable code, the place, expected and found, and the repair."""

    code: str
    where: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return one_line(f"{self.code}: {self.where}: {self.message}. {self.remedy}.")


#: Findings of one code that are shown; thousands of wrong rows are one mistake, made once.
EXAMPLES = 3


def grouped(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the lines to show: up to `EXAMPLES` findings of each code, and how many more there are."""
    counts = Counter(finding.code for finding in findings)
    for code, count in counts.items():
        own = [finding for finding in findings if finding.code == code]
        yield from map(str, own[:EXAMPLES])
        if count > EXAMPLES:
            yield f"{code}: and {count - EXAMPLES} more like these, {count} together."


def remedy_of(error: OSError) -> str:
    """What to do about a file that the system does not let be read."""
    if isinstance(error, PermissionError):
        return (
            "Run this as a user who may read it, or let its owner give that right (`ls -l` shows who has it; in a "
            "container it is the container's user)"
        )
    if isinstance(error, IsADirectoryError):
        return "A folder has the name of this file: rename the folder"
    return "Check that the disk is there and whole, then try again"


class SiteFolderError(CrossProbeError):
    """A site's folder cannot be used; `findings` holds every reason, `str()` shows them grouped."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(grouped(self.findings)))

    def __reduce__(self) -> tuple[type["SiteFolderError"], tuple[tuple[Finding, ...]]]:
        # The default would rebuild from the text; errors cross process borders in data loaders.
        return type(self), (self.findings,)
