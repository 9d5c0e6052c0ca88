"""The form of every name that is checked, once, and what to call it in plain words. Torch-free."""

from typing import Annotated

from pydantic import Field

#: Letters of a name at most.
LONGEST_NAME = 63
#: Of a site, a study, an ablation and its data sets: fit for a folder, a host and a line of a terminal.
NAME = rf"^[a-z0-9][a-z0-9-]{{0,{LONGEST_NAME - 1}}}$"
STAGE_NAME = r"^[a-z0-9_-]{1,40}$"
SHA256 = r"^[0-9a-f]{64}$"
Sha256 = Annotated[str, Field(pattern=SHA256)]

WORDS = {
    NAME: f"lower-case letters, digits and hyphens, at most {LONGEST_NAME}",
    STAGE_NAME: "lower-case letters, digits, hyphens and underscores, at most 40",
    SHA256: "a SHA-256 in hex, 64 digits",
}
