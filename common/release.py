"""A released model's folder: what is in it, and whether it is still as it was written. Torch-free.

    model.safetensors   the weights
    study.yaml          the study that made them, with its hash
    card.md             what the model is, for whom, and what was not shown
    SHA256SUMS          the hash of each; `sha256sum -c SHA256SUMS` reads it too
    SHA256SUMS.sig      the coordinator's signature of this list, see `common.signing`; not in every release

It holds no number of a single site, unlike the folder of the run that it comes from.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import ContractError, RunError
from common.signing import Sealed

#: In a run's folder.
RELEASE = "release"
WEIGHTS, STUDY, CARD, SUMS = "model.safetensors", "study.yaml", "card.md", "SHA256SUMS"
SIGNATURE = f"{SUMS}.sig"
FILES = (WEIGHTS, STUDY, CARD, SUMS, SIGNATURE)
_LINE = re.compile(r"([0-9a-f]{64})  ([\w.-]+)")


def sums_of(contents: Mapping[str, bytes]) -> bytes:
    """Return the list of hashes of files, name -> content."""
    return "".join(f"{hashlib.sha256(blob).hexdigest()}  {name}\n" for name, blob in sorted(contents.items())).encode()


def find_release(folder: Path, key: Ed25519PublicKey | None = None) -> Path:
    """Return the release that a folder is, or that a run's folder holds.

    Args:
        key: the coordinator's; with it, a release that it did not sign is refused.

    Raises:
        RunError: if there is none, or anything in it is not as it was written; all of it at once.
    """
    found = folder if (folder / SUMS).exists() else folder / RELEASE
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}. Give a release, or the finished run that holds it.")
    if not found.exists() and not (folder / WEIGHTS).exists():
        raise RunError(
            f"{folder} holds no release. Give its folder, with {SUMS}, or the run that holds it; a run that is not "
            "finished has none yet: go on with it by --resume."
        )
    problems = _problems(found)
    if key is not None and not problems:
        problems = _unsigned(found, key)
    if problems:
        raise RunError(
            f"{found} is not a whole release:\n" + "\n".join(f"  {problem}" for problem in problems) + "\nAsk the "
            "coordinator for the release again. In the folder of a finished run: crossprobe study release RUN"
        )
    return found


def _unsigned(folder: Path, key: Ed25519PublicKey) -> list[str]:
    try:
        signature = (folder / SIGNATURE).read_bytes() if (folder / SIGNATURE).exists() else b""
        Sealed((folder / SUMS).read_bytes(), signature).check(key, "release")
    except (OSError, ContractError) as error:
        return [f"{SIGNATURE}: {error}"]
    return []


def _problems(folder: Path) -> list[str]:
    try:
        lines = [_LINE.fullmatch(line) for line in (folder / SUMS).read_text(encoding="ascii").splitlines()]
    except (OSError, UnicodeDecodeError):
        return [f"{SUMS} is missing or cannot be read"]
    expected = {line[2]: line[1] for line in lines if line is not None}
    if None in lines or expected.keys() != {WEIGHTS, STUDY, CARD}:
        return [f"{SUMS} does not name exactly {WEIGHTS}, {STUDY} and {CARD}"]
    problems = []
    for name, sha256 in expected.items():
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
            continue
        if found != sha256:
            problems.append(f"{name}: expected SHA-256 {sha256}, found {found}")
    return problems
