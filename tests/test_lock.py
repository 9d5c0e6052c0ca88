"""What the images are installed from: complete, the versions of constraints.txt, and nothing that has another hash."""

import hashlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "deploy" / "lock").glob("*.lock"))
DOCKERFILE = (ROOT / "Dockerfile").read_text()
TORCH = ("torch", "torch-index")
#: Image -> the extra of pyproject.toml that it holds, and its layers' locks beside torch's.
IMAGES = {
    "node": ("", ["node"]),
    "worker": ("worker", ["node", "worker"]),
    "server": ("server", ["node", "server"]),
    "demo": ("simulation", ["node", "demo"]),
}


def pins(text: str) -> dict[str, str]:
    """Name -> version."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, flags=re.M)
    return {canonicalize_name(name): version for name, version in found}


def needed(lines: list[str], extras: frozenset[str] = frozenset()) -> dict[str, Requirement]:
    """Every distribution that requirements bring here, by the metadata of what is installed."""
    found: dict[str, Requirement] = {}
    open_: list[tuple[Requirement, frozenset[str]]] = [(Requirement(line), extras) for line in lines]
    seen = set()
    while open_:
        requirement, asked = open_.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in asked | {""}):
            continue
        name, wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, wanted) not in seen:
            seen.add((name, wanted))
            found[name] = requirement
            open_ += [(Requirement(line), wanted) for line in requires(name) or []]
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_pin_is_that_of_the_constraints_and_has_hashes(lock: Path) -> None:
    constraints, text = pins((ROOT / "constraints.txt").read_text()), lock.read_text()
    own = {name: version.partition("+")[0] for name, version in pins(text).items()}
    assert own
    assert {name: constraints[name] for name in own if name in constraints} == {
        name: version for name, version in own.items() if name in constraints
    }
    # Only what torch itself pins, NVIDIA's libraries and setuptools, may stand in no constraint.
    assert own.keys() <= constraints.keys() or lock.stem in TORCH
    entry = r"[a-z0-9.-]+==\S+(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"(?:{entry})+", text)  # and so neither an index nor a path


@pytest.mark.parametrize("torch", TORCH)
@pytest.mark.parametrize("image", IMAGES)
def test_an_image_lacks_no_dependency(image: str, torch: str) -> None:
    extra, layers = IMAGES[image]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    names = needed(lines).keys() - {"crossprobe"}
    if extra == "simulation":
        names |= needed(
            [each for part in ("worker", "server") for each in project["optional-dependencies"][part]]
        ).keys()
    locks = [*layers, torch] if extra else layers
    held: set[str] = set()
    for name in locks:
        held |= pins((ROOT / "deploy" / "lock" / f"{name}.lock").read_text()).keys()
        stage = "torch" if name in TORCH else name
        built = re.split(rf"^FROM \S+ AS {stage}$", DOCKERFILE, flags=re.M)[1].split("\nFROM ")[0]
        assert f"-r deploy/lock/{'torch${TORCH_INDEX:+-index}' if name in TORCH else name}.lock" in built
    assert len(names) > 20
    assert names <= held
    assert ("setuptools" in held) == bool(extra)  # builds the editable checkout without fetching anything


def install(folder: Path, lock: str) -> subprocess.CompletedProcess[str]:
    """Install with the very options of the Dockerfile, and no network."""
    options = re.findall(r"pip install (.*) -r deploy/lock/node\.lock", DOCKERFILE)[0]
    (folder / "own.lock").write_text(lock)
    command = [sys.executable, "-m", "pip", "install", *shlex.split(options), "-r", str(folder / "own.lock")]
    command += ["--no-index", "--find-links", str(folder), "--target", str(folder / "there")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run(command, capture_output=True, text=True, env=clean | {"PIP_CONFIG_FILE": os.devnull})


def wheel(folder: Path) -> str:
    """Write a package as a wheel; return its SHA-256."""
    file = folder / "planted-1.0-py3-none-any.whl"
    about = {
        "METADATA": "Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "planted.py,,\n",
    }
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("planted.py", "")
        for name, text in about.items():
            archive.writestr(f"planted-1.0.dist-info/{name}", text)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_pip_takes_the_archive_that_the_lock_names_and_no_other(tmp_path: Path) -> None:
    right = wheel(tmp_path)
    done = install(tmp_path, f"planted==1.0 --hash=sha256:{'0' * 64}\n")
    assert done.returncode != 0
    assert "DO NOT MATCH" in done.stderr
    assert not (tmp_path / "there" / "planted.py").exists()
    done = install(tmp_path, f"planted==1.0 --hash=sha256:{right}\n")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there" / "planted.py").exists()


def test_pip_takes_nothing_without_a_hash_and_builds_nothing(tmp_path: Path) -> None:
    wheel(tmp_path)
    done = install(tmp_path, "planted==1.0\n")
    assert done.returncode != 0
    assert "require-hashes" in done.stderr
    source = tmp_path / "unbuilt-1.0.tar.gz"
    source.write_bytes(b"whatever its setup.py would do")
    done = install(tmp_path, f"unbuilt==1.0 --hash=sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}\n")
    assert done.returncode != 0
    assert "No matching distribution" in done.stderr
