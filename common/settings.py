"""Settings as a person writes them in YAML: strict, and read with every problem named at once. Torch-free."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import StudyError


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def by_key(key: str, kinds: Mapping[str, type[Settings]], default: str = "") -> Callable[[object], object]:
    """Return a validator that reads a mapping as the settings that its value at `key` names.

    Args:
        kinds: name -> settings; looked at when a value is read, so that it may grow.
        default: name that stands for a missing key.
    """

    def parse(value: object) -> object:
        if not isinstance(value, dict):
            return value
        kind = kinds.get(str(value.get(key, default)))
        if kind is None:
            raise ValueError(f"unknown {key} {value.get(key)!r}; known: {', '.join(kinds)}")
        return kind.model_validate(value)

    return parse


SettingsKind = TypeVar("SettingsKind", bound=Settings)


def parse_settings(kind: type[SettingsKind], content: object, *, what: str, origin: str) -> SettingsKind:
    """Return the settings in `content`, a mapping as YAML gives it.

    Args:
        what: the word for such settings, e.g. `study`.

    Raises:
        StudyError: with every problem at once, each with the key it stands at.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, place)) or what}: {message}" for place, message in _problems(error)]
        raise StudyError(f"{origin} is not a valid {what}:\n" + "\n".join(lines)) from None


def _problems(error: ValidationError) -> Iterator[tuple[tuple[int | str, ...], str]]:
    """Yield where each value is wrong and why, also inside a value that a validator of ours parsed by itself."""
    for item in error.errors():
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            yield from (((*item["loc"], *place), message) for place, message in _problems(inner))
        else:
            yield item["loc"], item["msg"]


def read_settings(kind: type[SettingsKind], path: Path, *, what: str) -> SettingsKind:
    """Return the settings in a YAML file.

    Raises:
        StudyError: if the file cannot be read, is not YAML, or breaks the model.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"cannot read the {what} {path}: {error.strerror}. Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from None
    return parse_settings(kind, content, what=what, origin=str(path))
