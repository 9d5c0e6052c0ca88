"""The version: pyproject.toml says it, an installation knows it, enrolments carry it, approvals are bound to it."""

from importlib.metadata import PackageNotFoundError, version


def software_version() -> str:
    """Return the installed version, or `0` when the code runs without being installed."""
    try:
        return version("crossprobe")
    except PackageNotFoundError:
        return "0"


def approved_line(software: str) -> str:
    """Return major.minor of a version: what an approval holds for. A patch release changes nothing that leaves."""
    return ".".join(software.split(".")[:2])
