"""What an image holds, and what is taken out of it: run in the image, with nothing but Python.

python deploy/image.py          the largest packages, in MB
python deploy/image.py --slim   remove what no run needs; only in the layer that brought it does that save room
python deploy/image.py --sbom   the packages with versions, licences and locked hashes, as CycloneDX 1.5
"""

import json
import re
import shutil
import sys
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

#: Below this many MB a package is counted with the rest.
LISTED_MB = 10
#: torch's C++ headers and its own tests; of `torch/bin`, only the manager of shared memory runs with torch.
TORCH_PARTS = ("include", "test")
TORCH_PROGRAM = "torch_shm_manager"
#: What this image's layers were installed from; of torch.lock and torch-index.lock the one with the installed version.
LOCKS = Path(__file__).parent / "lock"
#: A licence longer than this many characters is a whole text and no name.
NAME_LENGTH = 100


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


def normal(name: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, list[str]]:
    """`name==version` -> SHA-256 of the archives that it may be installed from, of every lock."""
    text = "".join(file.read_text() for file in sorted(LOCKS.glob("*.lock")))
    entries = re.findall(r"^(\S+==\S+)((?:\s+\\\n\s+--hash=sha256:[0-9a-f]{64})+)", text, flags=re.M)
    return {pin: re.findall(r"[0-9a-f]{64}", hashes) for pin, hashes in entries}


def licences(package: Distribution) -> list[dict[str, Any]]:
    """Return what a package says of its licence: an SPDX expression, else its name, else nothing."""
    said = package.metadata
    if said["License-Expression"]:
        return [{"expression": said["License-Expression"]}]
    classifiers = [line for line in said.get_all("Classifier") or [] if line.startswith("License ::")]
    short = said["License"] if "\n" not in (said["License"] or "\n") and len(said["License"]) <= NAME_LENGTH else ""
    names = [short] if short else [line.rpartition(" :: ")[2] for line in classifiers]
    return [{"license": {"name": name}} for name in names]


def sbom() -> dict[str, Any]:
    """Return the packages as a software bill of materials, CycloneDX 1.5 (ECMA-424)."""
    found = {normal(package.name): package for package in distributions(path=[str(folder) for folder in packages()])}
    purl = {name: f"pkg:pypi/{name}@{package.version.replace('+', '%2B')}" for name, package in found.items()}
    hashes = locked()
    components, needs = [], []
    for name, package in sorted(found.items()):
        component = {"type": "library", "bom-ref": purl[name], "purl": purl[name]}
        component |= {"name": package.name, "version": package.version, "licenses": licences(package)}
        if allowed := hashes.get(f"{name}=={package.version}"):
            archives = [{"alg": "SHA-256", "content": value} for value in allowed]
            comment = "one of these archives was installed"
            component["externalReferences"] = [
                {"type": "distribution", "url": purl[name], "comment": comment, "hashes": archives}
            ]
        components.append(component)
        named = {normal(re.split(r"[^\w.-]", line)[0]) for line in package.requires or []}
        needs.append({"ref": purl[name], "dependsOn": sorted(purl[other] for other in named & found.keys() - {name})})
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "tools": {"components": [{"type": "application", "name": "crossprobe deploy/image.py"}]},
            "component": {"type": "container", "bom-ref": "image", "name": "crossprobe"},
        },
        "components": components,
        "dependencies": needs,
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["--slim"]:
        for place in packages():
            slim(place)
    elif sys.argv[1:] == ["--sbom"]:
        print(json.dumps(sbom(), indent=1))
    else:
        print(table())
