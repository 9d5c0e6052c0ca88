"""Whether a hospital's kit is the one that this version's checkout makes: it comes from the coordinator.

What isolates the worker stands in the kit's `compose.yaml`. A coordinator who means harm could give the worker a
network there, or the images to another container, and no code of the hospital's would see it. A secret or an approval
that comes with the kit is the coordinator's, too.
"""

import os
import re
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path

from common.errors import RunError
from common.plain_words import one_line
from common.signing import PUBLIC_KEY, SITES
from common.study import load_study
from server.federation.authority import CA_CERTIFICATE
from server.federation.provision import ROOMS, SITE_VARIABLES, KitSite, read_compose, site_files, valid_host

#: What a README tells a hospital to add to `.env`.
_COMPOSE_FILE = "compose.yaml:compose.gpu.yaml"
_ADDRESS = "COORDINATOR_ADDRESS"
_USER = ("CROSSPROBE_UID", "CROSSPROBE_GID")
#: The only forms of a line in `.env` that everything which reads it takes for the same: no quotes, blanks or `$`.
_LINE = re.compile(rb"([A-Z_]+)=([A-Za-z0-9_./:\[\]-]*)")
_COMMENT = re.compile(rb"#[ -~]*")
#: The other hospitals' keys, for sums under masks.
_SITE_KEY = re.compile(rf"study/{SITES}/[a-z0-9-]+\.pub")
#: Lines of a difference that are shown.
_MOST_LINES = 40


def check_kit(kit: Path, site: KitSite, *, in_use: bool = False) -> list[str]:
    """Return what in a hospital's kit is not as this version makes it, in words; nothing if all is.

    Args:
        in_use: the hospital's own folders in it may hold files by now.

    Raises:
        StudyError: if the kit's study cannot be read.
        RunError: if the folder is no kit.
    """
    try:
        content = (kit / ".env").read_bytes()
    except OSError:
        raise RunError(f"expected a hospital's kit in {kit}, with its .env, found none. Correct the path.") from None
    study = load_study(kit / "study" / "study.yaml")
    found, variables = _variables(content)
    if not in_use:
        found += [
            f".env sets {name} to {variables[name]}; a new kit has {value}"
            for name, value in SITE_VARIABLES.items()
            if name != "SITE_KIT" and variables.get(name, value) != value
        ]
    expected = site_files(read_compose(), study, site, variables.get(_ADDRESS, ""))
    for name, own in expected.items():
        found += _compared(kit, name, own)
    study_files = {f"study/{name}" for name in ("study.yaml", PUBLIC_KEY)}
    known = {*expected, *study_files, ".env", CA_CERTIFICATE}
    found += _others(kit, known, in_use=in_use)
    return found


def _compared(kit: Path, name: str, expected: bytes) -> Iterator[str]:
    try:
        there = (kit / name).read_bytes()
    except FileNotFoundError:
        yield f"{name} is missing"
        return
    except OSError as error:
        raise RunError(f"cannot read {kit / name}: {error.strerror}. Give the kit's folder.") from None
    if there != expected:
        changed = [*unified_diff(_lines(expected), _lines(there), lineterm="", n=0)][2:]
        lines = sorted(changed, key=lambda line: not line.startswith("+"))  # what was put in, before what is not there
        shown = lines[:_MOST_LINES] + [f"and {len(lines) - _MOST_LINES} more lines"] * (len(lines) > _MOST_LINES)
        yield "\n".join([f"{name} is not the one of this version:", *map(one_line, shown)])


def _lines(content: bytes) -> list[str]:
    return content.decode("utf-8", "backslashreplace").split("\n")


def _others(kit: Path, known: set[str], *, in_use: bool) -> Iterator[str]:
    """Yield every file that no kit has, links among them, which lead a container's folder to another place."""
    for folder, folders, files in os.walk(kit):
        for name in sorted([*folders, *files]):
            path = Path(folder) / name
            where = path.relative_to(kit).as_posix()
            if path.is_symlink():
                yield one_line(f"{where} is a link, and no kit has one")
            elif not path.is_dir() and where not in known and not _SITE_KEY.fullmatch(where):
                yield one_line(f"{where} is of no kit: is it yours?")
        if in_use and Path(folder) == kit:
            folders[:] = [name for name in folders if name not in (*ROOMS, "site")]


def _variables(content: bytes) -> tuple[list[str], dict[str, str]]:
    """Return what in `.env` is not as a kit has it, and its variables.

    Where data lie is the hospital's own to change, and under which user.
    """
    found, variables = [], {}
    for number, line in enumerate(content.split(b"\n"), 1):
        match = _LINE.fullmatch(line)
        if match:
            name, value = match[1].decode(), match[2].decode()
            if name in variables:
                found.append(f".env line {number} sets {name} once more")
            variables[name] = value
        elif line and not _COMMENT.fullmatch(line):
            found.append(f".env line {number}: expected NAME=VALUE of plain letters, without quotes or blanks")
    others = variables.keys() - {*SITE_VARIABLES, _ADDRESS, *_USER, "COMPOSE_FILE"}
    found += [f".env sets {name}, which no kit does" for name in sorted(others)]
    for name, right in (("COMPOSE_FILE", _COMPOSE_FILE), ("SITE_KIT", SITE_VARIABLES["SITE_KIT"])):
        if variables.get(name, right) != right:
            found.append(f".env sets {name} to {variables[name]}; every kit has {right}")
    for name in _USER:
        if not re.fullmatch("[1-9][0-9]{0,9}", variables.get(name, "")):
            found.append(f".env: expected {name} to be the number of a user who is not root")
    host, _, port = variables.get(_ADDRESS, "").rpartition(":")
    try:
        valid_host(host.removeprefix("[").removesuffix("]"))
        int(port)
    except ValueError:
        found.append(f".env: expected {_ADDRESS} to be a host and a port")
    return found, variables
