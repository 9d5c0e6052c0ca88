"""A good site's folder for tests, and small edits of it."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from clients.data.manifest import COLUMNS

HEIGHT, WIDTH = 24, 32
MASKED_AT_TARGET = "p3"  # its split is test


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def picture(seed: int, dtype: type = np.uint8) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (HEIGHT, WIDTH), dtype, endpoint=True)


def disc() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[8:16, 8:20] = 255
    return mask


def write_rows(folder: Path, rows: list[dict[str, str]], encoding: str = "utf-8") -> None:
    with (folder / "manifest.csv").open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def good_site(folder: Path, role: str = "source") -> Path:
    """Four patients with two frames each; train, calibrate or train, test, val."""
    folder.mkdir()
    (folder / "site.yaml").write_text(f"name: north\nrole: {role}\n")
    splits = {"p1": "train", "p2": "calibrate" if role == "source" else "train"}
    splits |= {MASKED_AT_TARGET: "test", "p4": "val"}
    rows: list[dict[str, str]] = []
    for patient, split in splits.items():
        for frame in ("0", "1"):
            file = f"{patient}_{frame}.png"
            save(folder / "images" / file, picture(len(rows)))
            row = {"image": f"images/{file}", "patient": patient, "video": f"v-{patient}"}
            row |= {"frame": frame, "device": "probe", "spacing_mm": "1.0", "split": split}
            if role == "source" or patient == MASKED_AT_TARGET:
                save(folder / "masks" / file, disc())
                row["mask"] = f"masks/{file}"
            rows.append(row)
    write_rows(folder, rows)
    return folder


def grey_levels(*values: int) -> np.ndarray:
    return np.resize(np.array(values, np.uint8), (HEIGHT, WIDTH))


COLOUR = np.stack([picture(1), picture(2), picture(3)], axis=-1)


Breaker = Callable[[Path], object]


def cell(column: str, value: str, row: int = 0) -> Breaker:
    def break_it(folder: Path) -> None:
        rows = read_rows(folder)
        rows[row][column] = value
        write_rows(folder, rows)

    return break_it


def column(name: str, value: str) -> Breaker:
    return lambda folder: write_rows(folder, [row | {name: value} for row in read_rows(folder)])
