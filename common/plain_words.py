"""What a settings model finds wrong, in the words of the person who wrote the settings. Torch-free.

The one place where pydantic's own sentences ("Extra inputs are not permitted") are replaced.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from common.names import WORDS

#: What a value should have been, by the part of pydantic's code before `_type`, `_parsing` and their like.
_KINDS = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "keys with values",
    "model": "keys with values",
    "path": "a path",
    "date": "a day such as 2027-12-31",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong with settings: the key it stands at, dotted, and what was expected and found.

    `kind` is `unknown-key`, `missing-key` or `wrong-value`.
    """

    key: str
    kind: str
    text: str


class NestedError(ValueError):
    """What is wrong with settings that a validator of ours read by itself, with their own model."""

    def __init__(self, error: ValidationError, model: type[BaseModel]) -> None:
        super().__init__(str(error))
        self.error, self.model = error, model


def problems(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Return what is wrong with settings of `model`, in the order of its keys."""
    found = []
    items = error.errors()
    places = [item["loc"] for item in items]
    for item in items:
        place = item["loc"]
        if item["type"] == "too_short" and any(len(other) > len(place) == _shared(other, place) for other in places):
            continue  # pydantic leaves out wrong entries before it counts
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, NestedError):
            prefix = "".join(f"{part}." for part in place)
            found += [replace(own, key=prefix + own.key) for own in problems(inner.error, inner.model)]
        else:
            found.append(_problem(dict(item), model))
    return found


def _shared(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> int:
    """Return how many parts two places have in common, from the first on."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _problem(item: dict[str, Any], model: type[BaseModel]) -> Problem:
    code, context, found = item["type"], item.get("ctx", {}), _shown(item["input"])
    location = tuple(item["loc"])
    key = ".".join(str(part) for part in location)
    if code == "extra_forbidden":
        known = sorted(_keys_at(model, location[:-1]))
        close = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return Problem(key, "unknown-key", f"expected one of {', '.join(known)}; found {location[-1]}{hint}")
    if code == "missing":
        return Problem(key, "missing-key", "expected this key, found none")
    if code in ("value_error", "assertion_error"):
        return Problem(key, "wrong-value", str(context.get("error", item["msg"])))
    return Problem(key, "wrong-value", f"expected {_expected(code, context, item['msg'])}, found {found}")


def _expected(code: str, context: dict[str, Any], message: str) -> str:
    if code in _BOUNDS:
        name, words = _BOUNDS[code]
        return f"{words} {context[name]}"
    if code == "literal_error":
        return f"one of {context['expected'].replace(' or ', ', ')}"
    if code == "union_tag_invalid":
        return f"{context['discriminator']} to be one of {context['expected_tags']}"
    if code == "union_tag_not_found":
        return f"the key {context['discriminator']}"
    if code == "string_pattern_mismatch":
        return WORDS.get(context["pattern"], f"text of the form {context['pattern']}")
    if code in ("too_short", "too_long", "string_too_short", "string_too_long"):
        words = "at least" if code.endswith("short") else "at most"
        return f"{words} {context.get('min_length', context.get('max_length'))} entries or letters"
    if code == "finite_number":
        return "a finite number"
    kind = code.partition("_")[0]
    return _KINDS.get(kind, f"something else ({message})")


def _shown(value: object) -> str:
    """A value as found, short: a whole section would hide the key at fault."""
    if isinstance(value, dict):
        return "keys with values" if value else "no keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = "nothing" if value is None else str(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """The keys that are known at a place within settings of `model`."""
    models: list[type[BaseModel]] = [model]
    for part in location:
        fields = [own.model_fields[str(part)] for own in models if part in own.model_fields]
        if fields:
            models = [inner for field in fields for inner in _models(field.annotation)]
        else:  # an entry of a list, or the tag that chooses one of several models
            tagged = [own for own in models if part in (field.default for field in own.model_fields.values())]
            models = tagged or models
    return {name for own in models for name in own.model_fields}


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for part in get_args(annotation):
        yield from _models(part)


def one_line(text: str) -> str:
    """The text as it may be printed: a file's name or a cell may hold line breaks, terminal codes or no text at all."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
