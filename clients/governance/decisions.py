"""What a hospital decided about studies: who approved or withdrew which one, and when, one line of JSON each.

An approval's file is gone once it is withdrawn, and another once it is given anew; these lines stay. They say what was
decided, and bind nothing: what holds is the approval. Whoever can write the state folder can change them.
"""

import errno
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from common.errors import SiteStateError
from common.files import append_to
from common.strict_text import parse_json

What = Literal["approved", "withdrew"]


@dataclass(frozen=True)
class Decision:
    """One line.

    Attributes:
        by: the person's name, as given.
        study, study_hash: name and hash of the study; the name is empty where its approval could not be read.
        when: UTC, ISO 8601.
        policy_hash, software: what an approval was given for; empty for a withdrawal.
    """

    what: What
    by: str
    study: str
    study_hash: str
    policy_hash: str = ""
    software: str = ""
    when: str = ""


def record(path: Path, decision: Decision) -> None:
    """Write a decision down, with the time of now.

    Raises:
        SiteStateError: if it cannot be written.
    """
    line = json.dumps(asdict(decision) | {"when": datetime.now(UTC).isoformat(timespec="seconds")})
    try:
        with open(append_to(path), "wb", buffering=0) as file:
            # one write, so that two commands' lines do not mix; after half a line of a full disk a new one begins
            torn = path.read_bytes()[-1:] not in (b"", b"\n")
            whole = b"\n" * torn + line.encode() + b"\n"
            if file.write(whole) < len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
    except OSError as error:
        raise SiteStateError(
            f"cannot write {path}: {error.strerror}. Make room, or run as the worker's user."
        ) from None


def decisions(path: Path) -> list[Decision]:
    """Return what was decided, oldest first; a line that a full disk cut short is left out.

    Raises:
        SiteStateError: if the file cannot be read.
    """
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SiteStateError(f"cannot read {path}: {error.strerror}. Run as the worker's user.") from None
    for line in lines:
        try:
            found.append(Decision(**parse_json(line, origin=path.name)))
        except (ValueError, TypeError):
            continue
    return found
