"""A site for each scanner of BUS-BRA, real breast ultrasound: from the data set as published, or from a subset of it.

W. Gomez-Flores, M. J. Gregorio-Calas, W. Coelho de Albuquerque Pereira, "BUS-BRA: A Breast
Ultrasound Dataset for Assessing Computer-aided Diagnosis Systems", Medical Physics 51(4), 2024,
doi:10.1002/mp.16812.
"""

import csv
import hashlib
import logging
import re
import shutil
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from clients.data.folders import write_site_files
from clients.data.manifest import SOURCE_FRACTIONS, Fractions, split_of_patient
from common.components import Role, Split
from common.errors import CrossProbeError
from common.files import whole_folder

LICENCE = "LICENSE.txt"
#: The published table, and those of its columns that are read; the others are diagnoses and sizes.
PUBLISHED, PUBLISHED_COLUMNS = "bus_data.csv", {"ID", "Case", "Device"}
SUBSET, SUBSET_COLUMNS = "index.csv", {"domain", "file", "patient", "device", "view", "has_mask"}
#: A model of either GE scanner does as well on the other one and much worse on the Toshiba: these two have labels.
SOURCES = ("ge-logiq7", "ge-logiq5")
SUBSET_SITES = {"ge_logiq7": "ge-logiq7", "ge_logiq5": "ge-logiq5", "toshiba_aplio300": "toshiba-aplio300"}
#: Everybody has a mask in the published set. Half of a target's patients are for testing, as in the subset.
PUBLISHED_TARGET: Fractions = (("test", 0.5), ("train", 0.5))


@dataclass(frozen=True)
class Picture:
    """An image as either layout names it; `mask` is None where there is none, or where it may not be used."""

    site: str
    patient: str
    device: str
    image: Path
    mask: Path | None
    split: Split

    @property
    def name(self) -> str:
        """The file's name in the site's folder."""
        return self.image.name


class DataSetError(CrossProbeError):
    """The data set is not as expected; `problems` holds everything that is wrong, one line each."""

    def __init__(self, source: Path, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join([f"{source} is not BUS-BRA:", *problems]))


def role_of(site: str) -> Role:
    """Return `source` for a scanner whose labels are used, `target` for every other."""
    return "source" if site in SOURCES else "target"


def import_busbra(
    source: Path,
    out: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    targets: Collection[str] = (),
    labelled: int | None = None,
) -> list[Path]:
    """Write a site folder for each scanner into `out` and return them, sources first.

    Source patients are split by a hash of their id and `seed`. Of a target, half of the patients (in the subset:
    those with masks) are `test`; the others are `train` without masks, all of them, for without labels there is
    nothing to select by. `video` is the patient and `frame` counts its views: they show one lesion.

    A labelled scanner named in `targets` plays a target: its training patients lose their masks, all others are `test`.
    With `labelled`, a source keeps at most so many training patients, drawn by `seed`, as a hospital with few labels.

    Raises DataSetError for missing or unexpected content of `source`, and FolderInUseError
    for an `out` with content unless `overwrite`; `out` is complete or as it was, whatever happens.
    """
    pictures = [
        _played(picture) if picture.site in targets and role_of(picture.site) == "source" else picture
        for picture in _read(source, seed)
    ]
    if labelled is not None:
        pictures = _few(pictures, labelled, seed)
    sites = sorted({picture.site for picture in pictures}, key=lambda site: (role_of(site) == "target", site))
    with whole_folder(out, [*sites, LICENCE], overwrite=overwrite) as work:
        for site in sites:
            role = "target" if site in targets else role_of(site)
            _write_site(work / site, site, role, [picture for picture in pictures if picture.site == site])
        # The licence asks that its notice goes with every copy.
        shutil.copyfile(source / LICENCE, work / LICENCE)
    return [out / site for site in sites]


def _played(picture: Picture) -> Picture:
    """A picture of a labelled scanner that plays an unlabelled one."""
    return replace(picture, mask=None) if picture.split == "train" else replace(picture, split="test")


def _few(pictures: list[Picture], labelled: int, seed: int) -> list[Picture]:
    """Those pictures, but training patients with masks beyond so many a site; which ones, a hash says."""

    def draw(patient: str) -> bytes:
        return hashlib.sha256(f"{seed}:labelled:{patient}".encode()).digest()

    learnt = {(p.site, p.patient) for p in pictures if p.split == "train" and p.mask is not None}
    kept = {
        (site, patient)
        for site in {site for site, _ in learnt}
        for patient in sorted((patient for own, patient in learnt if own == site), key=draw)[:labelled]
    }
    return [p for p in pictures if (p.site, p.patient) not in learnt - kept]


def _read(source: Path, seed: int) -> list[Picture]:
    """The pictures of whichever layout lies there, all files behind which exist. Raises DataSetError if not."""
    if (source / PUBLISHED).is_file():
        problems, pictures = _published(source, seed)
    elif (source / SUBSET).is_file():
        problems, pictures = _subset(source, seed)
    else:
        raise DataSetError(
            source,
            [
                f"expected {PUBLISHED} (the data set as published) or {SUBSET} (a subset by scanner), found neither.",
                f"Unpack the archive and give the folder that holds {PUBLISHED}, Images and Masks.",
            ],
        )
    problems += [] if (source / LICENCE).is_file() else [f"{LICENCE}: missing"]
    files = [file for picture in pictures for file in (picture.image, picture.mask) if file is not None]
    problems += [f"missing file {file}" for file in files if not file.is_file()]
    if problems:
        raise DataSetError(source, problems)
    return pictures


def _published(source: Path, seed: int) -> tuple[list[str], list[Picture]]:
    """Problems and pictures of `Images/bus_0001-l.png`, `Masks/mask_0001-l.png` and bus_data.csv."""
    problems: list[str] = []
    pictures: list[Picture] = []
    scanner_of: dict[str, str] = {}
    elsewhere = 0
    for line, row in enumerate(_rows(source, PUBLISHED, PUBLISHED_COLUMNS), start=2):
        where = f"{PUBLISHED} line {line}"
        number = re.fullmatch(r"bus_(\d+-[a-z]+)", row["ID"])
        site = _slug(row["Device"])
        if number is None or not row["Case"].isdigit() or not site:
            problems.append(
                f"{where}: expected an ID such as bus_0001-l, a number as Case and a Device, found {row['ID']!r}, "
                f"{row['Case']!r} and {row['Device']!r}"
            )
            continue
        patient = f"p{int(row['Case']):04d}"
        if scanner_of.setdefault(patient, site) != site:
            elsewhere += 1  # one patient at two sites would be trained on at one and tested on at the other
            continue
        split = split_of_patient(patient, SOURCE_FRACTIONS, salt=f"{seed}:")
        if role_of(site) == "target":
            split = split_of_patient(patient, PUBLISHED_TARGET, salt=f"{seed}:target:")
        masked = role_of(site) == "source" or split == "test"
        mask = source / "Masks" / f"mask_{number[1]}.png" if masked else None
        image = source / "Images" / f"{row['ID']}.png"
        pictures.append(Picture(site, patient, row["Device"], image, mask, split))
    if elsewhere:
        logging.warning("left out %d images of patients who were seen with another scanner before", elsewhere)
    return problems or ([] if pictures else [f"{PUBLISHED}: expected rows, found none"]), pictures


def _slug(device: str) -> str:
    """The name of a scanner's site: `GE Logiq 7 @10-14MHz` -> `ge-logiq7`."""
    words = re.sub(r"[^a-z0-9]+", "-", device.partition("@")[0].lower()).strip("-")
    return re.sub(r"(?<=[a-z])-(?=\d)", "", words)


def _subset(source: Path, seed: int) -> tuple[list[str], list[Picture]]:
    """Problems and pictures of `<scanner>/images/<file>`, `<scanner>/masks/<file>` and index.csv."""
    rows = _rows(source, SUBSET, SUBSET_COLUMNS)
    masked = {(row["domain"], row["patient"]) for row in rows if row["has_mask"] == "1"}
    problems = [
        f"{SUBSET}: expected rows of domain {domain}, found none"
        for domain in SUBSET_SITES
        if not any(row["domain"] == domain for row in rows)
    ]
    pictures: list[Picture] = []
    for line, row in enumerate(rows, start=2):
        wrong = _wrong_in_subset(row)
        if wrong:
            problems.append(f"{SUBSET} line {line}: {wrong}")
            continue
        site, patient, folder = SUBSET_SITES[row["domain"]], row["patient"], source / row["domain"]
        split: Split = "test" if (row["domain"], patient) in masked else "train"
        if role_of(site) == "source":
            split = split_of_patient(patient, SOURCE_FRACTIONS, salt=f"{seed}:")
        mask = folder / "masks" / row["file"] if row["has_mask"] == "1" else None
        pictures.append(Picture(site, patient, row["device"], folder / "images" / row["file"], mask, split))
    return problems, pictures


def _wrong_in_subset(row: dict[str, str]) -> str:
    """What is wrong with one row of index.csv, or an empty text."""
    if row["domain"] not in SUBSET_SITES:
        return f"expected a domain of {', '.join(SUBSET_SITES)}; found {row['domain']!r}"
    if not row["file"] or Path(row["file"]).name != row["file"]:
        return f"expected the name of a file, found {row['file']!r}"
    if role_of(SUBSET_SITES[row["domain"]]) == "source" and row["has_mask"] != "1":
        return f"expected has_mask 1 in {row['domain']}, found {row['has_mask']!r}"
    return ""


def _rows(source: Path, table: str, columns: set[str]) -> list[dict[str, str]]:
    try:
        with (source / table).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows, found = list(reader), set(reader.fieldnames or ())
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataSetError(source, [f"{table}: expected the data set's own CSV in UTF-8, found {error}"]) from None
    if missing := columns - found:
        raise DataSetError(source, [f"{table}: missing columns {', '.join(sorted(missing))}"])
    return rows


def _write_site(folder: Path, site: str, role: Role, pictures: list[Picture]) -> None:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    views: Counter[str] = Counter()
    manifest = []
    for picture in sorted(pictures, key=lambda picture: picture.name):
        image, mask = f"images/{picture.name}", f"masks/{picture.name}" if picture.mask else ""
        shutil.copyfile(picture.image, folder / image)
        if picture.mask is not None:
            shutil.copyfile(picture.mask, folder / mask)
        patient = picture.patient
        row = {"image": image, "mask": mask, "patient": patient, "video": patient, "frame": views[patient]}
        manifest.append(row | {"device": picture.device, "split": picture.split})
        views[patient] += 1
    write_site_files(folder, name=site, role=role, rows=manifest)
