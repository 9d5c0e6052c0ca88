"""A CSV table as people have it: from any spreadsheet, in any European setting. No meaning is given to its cells."""

import csv
import difflib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clients.data.findings import Finding, remedy_of

DELIMITERS = ",;\t"
#: Some hundred thousand rows; a larger file is no list of images, and takes minutes to read.
MAX_BYTES = 2**24


@dataclass(frozen=True)
class Line:
    """One row of a table: the line it ends at in the file, from 1, and its cells by lower-case column."""

    number: int
    cells: dict[str, str]


def read_table(
    path: Path, columns: Sequence[str], required: Sequence[str], findings: list[Finding], *, code: str = "manifest"
) -> list[Line]:
    """The rows of a CSV file; whatever is wrong with it is appended to `findings`, and then no rows may be there.

    UTF-8 (with or without a byte order mark), UTF-16 and Windows-1252; commas, semicolons or tabs; capitals in the
    header; columns beyond `columns` are left out, those not `required` may be missing and are empty then.

    Args:
        code: the word for the file in the codes, as in `missing-manifest`.
    """

    def unusable(kind: str, message: str, remedy: str) -> list[Line]:
        findings.append(Finding(kind, path.name, message, remedy))
        return []

    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            message = f"expected a table of at most {MAX_BYTES >> 20} MiB, found more"
            return unusable(f"huge-{code}", message, "Is it this file? Else make several sites of it")
        lines = _split(_decoded(content))
    except FileNotFoundError:
        remedy = f"Write it with the header {','.join(columns)} and one row per image"
        return unusable(f"missing-{code}", "expected this file, found none", remedy)
    except OSError as error:
        return unusable(f"unreadable-{code}", f"expected to read it, found: {error.strerror}", remedy_of(error))
    except UnicodeDecodeError as error:
        message = f"expected text, found byte 0x{error.object[error.start]:02x}"
        return unusable(f"unreadable-{code}", message, 'Save it as "CSV UTF-8"')
    except csv.Error as error:
        return unusable(
            f"unreadable-{code}",
            f"expected a table of comma-separated text, found what cannot be read ({error})",
            "Save the table again as CSV; look for a quotation mark that is never closed",
        )
    header = [cell.lower() for cell in lines[0][1]] if lines else []
    if wrong := _wrong_columns(header, columns, required):
        return unusable(
            "wrong-columns",
            f"expected the columns {', '.join(required)}, and any of {', '.join(columns)}; found "
            f"{', '.join(header) or 'none'} ({wrong})",
            "Correct the first line; cells may be empty, and other columns are left alone",
        )
    if len(lines) == 1:
        return unusable(f"empty-{code}", "expected one row per image, found only the header", "Add the images")
    found = []
    for number, cells in lines[1:]:
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()  # a spreadsheet pads rows
        if len(cells) != len(header):
            findings.append(
                Finding(
                    "wrong-cell-count",
                    f"{path.name} line {number}",
                    f"expected {len(header)} cells, found {len(cells)}",
                    "Put cells that hold a comma in quotation marks; keep the commas of empty cells",
                )
            )
            continue
        named = dict(zip(header, cells, strict=True))
        found.append(Line(number, {column: named.get(column, "") for column in columns}))
    return found


def _decoded(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")  # what a European Excel calls CSV


def _split(text: str) -> list[tuple[int, list[str]]]:
    """Line number and stripped cells of every row that is not empty."""
    first, _, rest = text.partition("\n")
    given = re.fullmatch(r'"?sep=(.)"?\s*', first)  # Excel's own first line
    start = 1 if given else 0
    header = rest.partition("\n")[0] if given else first
    delimiter = given[1] if given else max(DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(rest if given else text, newline=""), delimiter=delimiter, strict=True)
    rows = [(reader.line_num + start, [cell.strip() for cell in cells]) for cells in reader]
    return [(number, cells) for number, cells in rows if any(cells)]


def _wrong_columns(header: Sequence[str], columns: Sequence[str], required: Sequence[str]) -> str:
    """What is wrong with a header, or an empty text. A known column that is misspelt is not merely left out."""
    missing = [column for column in required if column not in header]
    doubled = sorted({name for name in header if name in columns and header.count(name) > 1})
    absent = [column for column in columns if column not in header]
    close = {name: difflib.get_close_matches(name, absent, 1, 0.8) for name in header if name and name not in columns}
    parts = [f"missing: {', '.join(missing)}"] if missing else []
    parts += [f"twice: {', '.join(doubled)}"] if doubled else []
    parts += [f"`{name}` is unknown, did you mean {match[0]}?" for name, match in close.items() if match]
    return "; ".join(parts)
