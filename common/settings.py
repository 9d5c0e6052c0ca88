"""Settings as a person writes them in YAML: strict, and read with every problem named at once. Torch-free."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import StudyError
from common.plain_words import NestedError, problems
from common.strict_text import TextError, read_yaml


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
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise NestedError(error, kind) from None

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
        lines = [f"  {problem.key or what}: {problem.text}" for problem in problems(error, kind)]
        raise StudyError(f"{origin} is not a valid {what}:\n" + "\n".join(lines)) from None


def read_settings(kind: type[SettingsKind], path: Path, *, what: str) -> SettingsKind:
    """Return the settings in a YAML file.

    Raises:
        StudyError: if the file cannot be read, is not YAML, or breaks the model.
    """
    try:
        content = read_yaml(path)
    except OSError as error:
        raise StudyError(f"cannot read the {what} {path}: {error.strerror}. Check the path.") from None
    except TextError as error:
        raise StudyError(str(error)) from None
    return parse_settings(kind, content, what=what, origin=str(path))
