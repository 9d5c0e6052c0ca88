"""What a measuring command leaves: its figures for machines, and beside them the page that stands in the documents."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from common.errors import RunError
from common.files import PUBLIC, write_atomically
from simulations.simulate import hardware

#: The page that the parts of a measured product's speed stand on, each between two marks.
PERFORMANCE = Path("docs/performance.md")


def origin(module: str, seed: int) -> dict[str, object]:
    """Return what figures come from: the command as it was given, hardware and seed."""
    return {"command": shlex.join(["python", "-m", module, *sys.argv[1:]]), "hardware": hardware(), "seed": seed}


def write_figures(file: Path, figures: Mapping[str, object]) -> None:
    """Write figures as JSON that stands in the documents. Raises RunError."""
    make_folder(file.parent)
    write_atomically(file, (json.dumps(figures, indent=1) + "\n").encode(), mode=PUBLIC)


def make_folder(folder: Path) -> None:
    """Make a folder for what is published, and those that it lies in. Raises RunError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}. Give another place.") from None


def insert(document: Path, name: str, text: str) -> None:
    """Write a part of a document anew, between its marks `<!-- NAME ... -->` and `<!-- end -->`.

    Raises:
        RunError: if the document has no such part, or cannot be written.
    """
    before, after = around(document, name)
    write_atomically(document, f"{before}{text.rstrip()}\n{after}".encode(), mode=PUBLIC)


def around(document: Path, name: str) -> tuple[str, str]:
    """Return what stands before and after a part of a document, its marks included; see `insert`. Raises RunError."""
    try:
        before, begin, rest = document.read_text(encoding="utf-8").partition(f"<!-- {name}")
    except OSError as error:
        raise RunError(f"cannot read {document}: {error.strerror}. Correct the path.") from None
    mark, closed, rest = rest.partition("-->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not (begin and closed and end):
        raise RunError(f"expected a line <!-- {name} --> and after it <!-- end --> in {document}, found none.")
    return f"{before}{begin}{mark}{closed}", f"{end}{after}"


def tell(name: str, figures: Mapping[str, object], page: str) -> None:
    """Keep figures of speed as docs/performance/NAME.json, and write their part of `PERFORMANCE`. Raises RunError."""
    write_figures(PERFORMANCE.with_suffix("") / f"{name}.json", figures)
    insert(PERFORMANCE, name, page)


def publish(out: Path, figures: Mapping[str, object], page: str) -> None:
    """Write OUT.json and OUT.md. Raises RunError."""
    write_figures(out.with_suffix(".json"), figures)
    write_atomically(out.with_suffix(".md"), page.encode(), mode=PUBLIC)
