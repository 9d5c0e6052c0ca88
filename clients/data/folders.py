"""Writing the files of a site folder, in the format of `clients.data.site`."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from clients.data.manifest import COLUMNS
from common.components import Role


def write_site_files(folder: Path, *, name: str, role: Role, rows: Iterable[Mapping[str, object]]) -> None:
    """site.yaml with the defaults, and manifest.csv; a row may leave out its empty cells."""
    content = yaml.safe_dump({"name": name, "role": role}, sort_keys=False)
    (folder / "site.yaml").write_text(content, encoding="utf-8")
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
