"""The errors a person is meant to read: one line of what is wrong, and what to do next."""


class CrossProbeError(Exception):
    """Base of every error that the command shows as a message instead of a traceback."""


class StudyError(CrossProbeError):
    """A study file that cannot be run as written."""


class ContractError(CrossProbeError):
    """A message that breaks the contract.

    Attributes:
        code: a short fixed word (`wrong-shape`, `not-finite`, ...) that may leave a site; the text
            never holds anything of an image, a patient or a path.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class RunError(CrossProbeError):
    """A run that cannot start, go on or be read."""


class SiteStateError(CrossProbeError):
    """A site's state folder that is missing, in use, damaged or cannot be written."""
