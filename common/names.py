"""The form of every name that is checked, once, and what to call it in plain words. Torch-free."""

from typing import Annotated

from pydantic import Field

#: Of a site, a study, an ablation and its data sets: fit for a folder, a host and a line of a terminal.
NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
STAGE_NAME = r"^[a-z0-9_-]{1,40}$"
SHA256 = r"^[0-9a-f]{64}$"
Sha256 = Annotated[str, Field(pattern=SHA256)]

WORDS = {
    NAME: "lower-case letters, digits and hyphens, at most 63",
    STAGE_NAME: "lower-case letters, digits, hyphens and underscores, at most 40",
    SHA256: "a SHA-256 in hex, 64 digits",
}
