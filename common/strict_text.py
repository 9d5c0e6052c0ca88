"""YAML and JSON read strictly: what has two meanings, or grows while it is read, is refused with its line. Torch-free.

YAML keeps the last of two equal keys, so that a second `policy:` would silently undo the first; its aliases let a
small file become a huge one.
"""

import json
import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from common.errors import CrossProbeError

#: A study or a site.yaml has some kB and five levels.
MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
#: Digits of a whole number; no setting needs more than a seed's ten.
MAX_DIGITS = 18

_MERGE = "tag:yaml.org,2002:merge"


class TextError(CrossProbeError, ValueError):
    """A text that cannot be used.

    Attributes:
        line: of the first fault, from 1, or None where it has none.
        reason: what was expected and found.
    """

    def __init__(self, origin: str, line: int | None, reason: str) -> None:
        self.line, self.reason = line, reason
        super().__init__(f"{origin}{f' line {line}' if line else ''}: {reason}")


class _Fault(yaml.MarkedYAMLError):
    pass


def parse_yaml(content: bytes, *, origin: str) -> object:
    """Return what a YAML file says: mappings with text keys, lists, text, numbers, booleans, dates and null.

    Args:
        origin: the file, for the error.

    Raises:
        TextError: for what is not UTF-8 or not YAML; doubled keys, keys that are no text, aliases, nesting, numbers
            and files beyond any use, dates that do not exist.
    """
    if len(content) > MAX_BYTES:
        raise TextError(origin, None, f"expected at most {MAX_BYTES} bytes, found {len(content)}; is it this file?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"found byte 0x{content[error.start]:02x}; save it as UTF-8"
        raise TextError(origin, line, f"expected UTF-8 text, {found}") from None
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "no YAML"
        raise TextError(
            origin, mark.line + 1 if mark else None, reason if isinstance(error, _Fault) else f"not YAML: {reason}"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError):  # what a tag such as `!!int abc` leads to
        raise TextError(origin, None, "a value is not of the kind that its tag says; leave tags out") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise TextError(origin, line, "not YAML: a control character, or another that no text has") from None


def read_yaml(path: Path) -> object:
    """Return what a YAML file says; see `parse_yaml`. Raises OSError, TextError."""
    with path.open("rb") as file:
        return parse_yaml(file.read(MAX_BYTES + 1), origin=str(path))


def parse_json(content: bytes | str, *, origin: str) -> Any:
    """Return what a JSON text says.

    Raises:
        TextError: for what is not JSON; doubled keys, NaN and infinity, nesting or numbers beyond any use.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise TextError(origin, None, "expected each key once, found one twice")
        return found

    def constant(name: str) -> float:
        raise TextError(origin, None, f"expected a finite number, found {name}")

    try:
        return json.loads(content, object_pairs_hook=unique, parse_constant=constant)
    except TextError:
        raise
    except json.JSONDecodeError as error:
        raise TextError(origin, error.lineno, f"not JSON: {error.msg}") from None
    except (ValueError, RecursionError):  # no UTF-8, a number of thousands of digits, or nested without end
        raise TextError(origin, None, "not JSON that this software wrote") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without what is dangerous or surprising."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _fault("an alias (`*name`) is not allowed; write its content out", self.peek_event().start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _fault(f"expected at most {MAX_DEPTH} levels, found more", self.peek_event().start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True) if key_node.tag != _MERGE else None
            if not isinstance(key, str):
                shown = getattr(key_node, "value", "")
                shown = f"`{shown}`" if isinstance(shown, str) else "a list or keys"
                raise _fault(f"expected text as key, found {shown}; put it in quotation marks", key_node.start_mark)
            if key in lines:
                first = f"found it in line {lines[key]} too"
                raise _fault(f"expected the key `{key}` once, {first}; remove one of them", key_node.start_mark)
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def construct_yaml_map(self, node: yaml.MappingNode) -> Any:
        yield self.construct_mapping(node, deep=True)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = str(node.value)
        if len(text) > MAX_DIGITS + 8:
            raise _fault(f"expected a number of at most {MAX_DIGITS} digits, found {len(text)}", node.start_mark)
        # YAML 1.1 reads 010 as eight and 1:30 as ninety; nobody means that.
        if ":" in text or (text.lstrip("+-").startswith("0") and text.lstrip("+-").isdigit() and int(text) != 0):
            raise _fault(f"expected a decimal number, found `{text}`; put it in quotation marks", node.start_mark)
        whole = node.tag.endswith(":int")
        value: int | float = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
        if not math.isfinite(value):
            raise _fault(f"expected a finite number, found `{text}`", node.start_mark)
        return value

    def construct_date(self, node: yaml.ScalarNode) -> Any:
        try:
            return self.construct_yaml_timestamp(node)
        except ValueError:
            raise _fault(f"expected a date that exists, found `{node.value}`", node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_yaml_map)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_date)


def _fault(problem: str, mark: yaml.Mark) -> _Fault:
    return _Fault(problem=problem, problem_mark=mark)
