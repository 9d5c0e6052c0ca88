"""Whether a hospital's kit is the one that this version's checkout makes: it comes from the coordinator.

What isolates the worker stands in the kit's `compose.yaml`. A coordinator who means harm could give the worker a
network there, or the images to another container, and no code of the hospital's would see it.
"""

from difflib import unified_diff
from pathlib import Path

from common.errors import RunError
from common.study import load_study
from server.federation.provision import SITE_VARIABLES, KitSite, read_compose, site_files

#: Files that `docker compose` takes up by itself beside `compose.yaml`, or in its place.
_BESIDE = (
    "compose.yml",
    "docker-compose.yaml",
    "docker-compose.yml",
    "compose.override.yaml",
    "compose.override.yml",
    "docker-compose.override.yaml",
    "docker-compose.override.yml",
)
#: What a README tells a hospital to add to `.env`.
_COMPOSE_FILE = "compose.yaml:compose.gpu.yaml"
_USER = ("CROSSPROBE_UID", "CROSSPROBE_GID")


def check_kit(kit: Path, site: KitSite) -> list[str]:
    """Return what in a hospital's kit is not as this version makes it, in words; nothing if all is.

    Raises:
        StudyError: if the kit's study cannot be read.
        RunError: if the folder is no kit.
    """
    study = load_study(kit / "study" / "study.yaml")
    variables = _variables(kit)
    found = _of_variables(variables)
    for name, expected in site_files(read_compose(), study, site, variables.get("COORDINATOR_ADDRESS", "")).items():
        try:
            there = (kit / name).read_bytes()
        except FileNotFoundError:
            found.append(f"{name} is missing")
            continue
        except OSError as error:
            raise RunError(f"cannot read {kit / name}: {error.strerror}. Give the kit's folder.") from None
        if there != expected:
            lines = unified_diff(_lines(expected), _lines(there), "this version", name, lineterm="", n=0)
            found.append(f"{name} is not the one of this version:\n" + "\n".join(list(lines)[2:]))
    for name in _BESIDE:
        if (kit / name).exists():
            found.append(
                f"{name} is of no kit, and `docker compose` takes it up by itself: keep it only if you wrote it"
            )
    return found


def _lines(content: bytes) -> list[str]:
    return content.decode("utf-8", "replace").splitlines()


def _variables(kit: Path) -> dict[str, str]:
    try:
        lines = (kit / ".env").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise RunError(
            f"expected a hospital's kit in {kit}, with its .env, found none. Give the kit's folder."
        ) from None
    return dict(line.partition("=")[::2] for line in lines if line.strip() and not line.startswith("#"))


def _of_variables(variables: dict[str, str]) -> list[str]:
    """Return what in `.env` is none of the kit's; where data lie and under which user is the hospital's own."""
    known = {*SITE_VARIABLES, "COORDINATOR_ADDRESS", *_USER}
    found = [f".env sets {name}, which no kit does" for name in variables.keys() - known - {"COMPOSE_FILE"}]
    if variables.get("COMPOSE_FILE", _COMPOSE_FILE) != _COMPOSE_FILE:
        found.append(f".env sets COMPOSE_FILE to {variables['COMPOSE_FILE']}; the kit's own is {_COMPOSE_FILE}")
    if variables.get("SITE_KIT") != ".":
        found.append(f".env sets SITE_KIT to {variables.get('SITE_KIT')}; the kit's own is `.`")
    found += [
        f".env sets {name} to 0, and containers would run as root" for name in _USER if variables.get(name) == "0"
    ]
    return sorted(found)
