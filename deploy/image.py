"""What an image holds, and what is taken out of it: run in the image, with nothing but Python.

python deploy/image.py          the largest packages, in MB
python deploy/image.py --slim   remove what no run needs; only in the layer that brought it does that save room
"""

import shutil
import sys
from pathlib import Path

#: Below this many MB a package is counted with the rest.
LISTED_MB = 10
#: torch's C++ headers and its own tests; of `torch/bin`, only the manager of shared memory runs with torch.
TORCH_PARTS = ("include", "test")
TORCH_PROGRAM = "torch_shm_manager"


def packages() -> list[Path]:
    """Return the folders that pip installs into."""
    return [
        Path(path) for path in sys.path if path.endswith(("site-packages", "dist-packages")) and Path(path).is_dir()
    ]


def slim(folder: Path) -> None:
    """Remove tests and what only building against a package needs."""
    doomed = [path for path in folder.rglob("tests") if path.is_dir()]
    doomed += [folder / "torch" / part for part in TORCH_PARTS]
    doomed += [path for path in (folder / "torch" / "bin").glob("*") if path.name != TORCH_PROGRAM]
    for path in doomed:
        if path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)  # it may have gone with a folder around it


def size_mb(path: Path) -> float:
    """Return what a file or folder takes, in MB (10^6 bytes)."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink()) / 1e6


def table() -> str:
    """Return the packages as a Markdown table, largest first."""
    sizes = {entry.name: size_mb(entry) for folder in packages() for entry in folder.iterdir()}
    largest = sorted((name for name in sizes if sizes[name] >= LISTED_MB), key=lambda name: -sizes[name])
    rest = sum(size for size in sizes.values() if size < LISTED_MB)
    rows = [f"| {name} | {sizes[name]:.0f} |" for name in largest]
    return "\n".join(["| package | MB |", "| --- | --- |", *rows, f"| all others | {rest:.0f} |"])


if __name__ == "__main__":
    if sys.argv[1:] == ["--slim"]:
        for place in packages():
            slim(place)
    else:
        print(table())
