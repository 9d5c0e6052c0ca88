"""Three sites from a subset of BUS-BRA, real breast ultrasound of three scanners.

W. Gomez-Flores, M. J. Gregorio-Calas, W. Coelho de Albuquerque Pereira, "BUS-BRA: A Breast
Ultrasound Dataset for Assessing Computer-aided Diagnosis Systems", Medical Physics 51(4), 2024,
doi:10.1002/mp.16812.
"""

import csv
import shutil
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from clients.data.manifest import SOURCE_FRACTIONS, Role, Split, split_of_patient
from common.errors import CrossProbeError
from simulations.folders import whole_folder, write_site_files

COLUMNS = {"domain", "file", "patient", "device", "view", "has_mask"}
LICENCE = "LICENSE.txt"


@dataclass(frozen=True)
class Domain:
    """One scanner of the data set, and the site made of it."""

    folder: str
    site: str
    role: Role


# A model of either GE scanner does as well on the other one and much worse on the Toshiba.
DOMAINS = (
    Domain("ge_logiq7", "ge-logiq7", "source"),
    Domain("ge_logiq5", "ge-logiq5", "source"),
    Domain("toshiba_aplio300", "toshiba-aplio300", "target"),
)


class DataSetError(CrossProbeError):
    """The data set is not as expected; `problems` holds everything that is wrong, one line each."""

    def __init__(self, source: Path, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join([f"{source} is not the BUS-BRA subset:", *problems]))


def import_busbra(
    source: Path, out: Path, *, seed: int = 0, overwrite: bool = False, targets: Collection[str] = ()
) -> list[Path]:
    """Write the site folders of `DOMAINS` into `out` and return them.

    Source patients are split by a hash of their id and `seed`. Target patients with masks are
    `test`; the others are `train`, all of them, for without labels there is nothing to select by.
    `video` is the patient and `frame` counts its views: they show one lesion.

    A labelled scanner named in `targets` plays a target: its training patients lose their masks, all others are `test`.

    Raises DataSetError for missing or unexpected content of `source`, and FolderInUseError
    for an `out` with content unless `overwrite`; `out` is complete or as it was, whatever happens.
    """
    rows = _read_index(source)
    names = [*(domain.site for domain in DOMAINS), LICENCE]
    with whole_folder(out, names, overwrite=overwrite) as work:
        for domain in DOMAINS:
            own = [row for row in rows if row["domain"] == domain.folder]
            if domain.site in targets and domain.role == "source":
                domain = replace(domain, role="target")
                own = [row | {"has_mask": ""} if _splits(row, seed) == "train" else row for row in own]
            _write_site(source / domain.folder, work / domain.site, domain, own, seed)
        # The licence asks that its notice goes with every copy.
        shutil.copyfile(source / LICENCE, work / LICENCE)
    return [out / domain.site for domain in DOMAINS]


def _read_index(source: Path) -> list[dict[str, str]]:
    """The rows of index.csv, all files behind which are there. Raises DataSetError if not."""
    index = source / "index.csv"
    if not index.is_file():
        raise DataSetError(source, ["index.csv: expected this file, found none"])
    with index.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        missing = COLUMNS - set(reader.fieldnames or ())
        if missing:
            raise DataSetError(source, [f"index.csv: missing columns {', '.join(sorted(missing))}"])
        rows = list(reader)

    problems = [] if (source / LICENCE).is_file() else [f"{LICENCE}: missing"]
    for domain in DOMAINS:
        if not any(row["domain"] == domain.folder for row in rows):
            problems.append(f"index.csv: expected rows of domain {domain.folder}, found none")
    roles = {domain.folder: domain.role for domain in DOMAINS}
    for line, row in enumerate(rows, start=2):
        problems += [f"index.csv line {line}: {problem}" for problem in _problems(source, row, roles)]
    if problems:
        raise DataSetError(source, problems)
    return rows


def _problems(source: Path, row: dict[str, str], roles: dict[str, Role]) -> list[str]:
    """What is wrong with one row of index.csv or with the files it names."""
    domain, file = row["domain"], row["file"]
    if domain not in roles:
        return [f"expected a domain of {', '.join(roles)}; found {domain!r}"]
    if not file or Path(file).name != file:
        return [f"expected the name of a file, found {file!r}"]
    problems = []
    if roles[domain] == "source" and row["has_mask"] != "1":
        problems.append(f"expected has_mask 1 in {domain}, found {row['has_mask']!r}")
    kinds = ("images", "masks") if row["has_mask"] == "1" else ("images",)
    paths = [source / domain / kind / file for kind in kinds]
    return problems + [f"missing file {path}" for path in paths if not path.is_file()]


def _splits(row: dict[str, str], seed: int) -> Split:
    return split_of_patient(row["patient"], SOURCE_FRACTIONS, salt=f"{seed}:")


def _write_site(source: Path, folder: Path, domain: Domain, rows: list[dict[str, str]], seed: int) -> None:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    masked = {row["patient"] for row in rows if row["has_mask"] == "1"}
    views: Counter[str] = Counter()
    manifest = []
    for row in sorted(rows, key=lambda row: row["file"]):
        patient, image = row["patient"], f"images/{row['file']}"
        mask = f"masks/{row['file']}" if row["has_mask"] == "1" else ""
        for name in filter(None, (image, mask)):
            shutil.copyfile(source / name, folder / name)
        split: Split = "test" if patient in masked else "train"
        if domain.role == "source":
            split = _splits(row, seed)
        manifest.append(
            {
                "image": image,
                "mask": mask,
                "patient": patient,
                "video": patient,
                "frame": views[patient],
                "device": row["device"],
                "split": split,
            }
        )
        views[patient] += 1
    write_site_files(folder, name=domain.site, role=domain.role, rows=manifest)
