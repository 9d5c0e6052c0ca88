"""What one version of the code trained is never taken for another's: every module that training can reach counts."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from simulations.ablation import code_version
from simulations.ablation.code_version import ROOT, code_digest, modules_behind

TRAINING = "simulations.ablation.stage_cache"
PACKAGES = ("clients", "common", "server", "simulations")
#: Some of those that must be among them: whose change must not pass for no change.
DECIDING = {
    *(f"clients.data.{name}" for name in ("manifest", "images", "site", "frames", "dataset")),
    *(f"clients.learning.{name}" for name in ("supervise", "self_supervise", "self_train", "infuse", "score")),
    *(f"common.{name}" for name in ("tasks", "contract", "study", "losses", "metrics")),
    *(
        "clients.governance.policy",
        "clients.node.worker",
        "server.state",
        "server.rounds",
        "server.aggregation.exact_mean",
    ),
    *("simulations.ablation.pooled", "simulations.ablation.code_version", TRAINING),
}
#: Trains every stage of the tiny study, federated and pooled, and prints the project's modules that this loaded.
TRAIN = """
import sys
from pathlib import Path
from clients.data.site import load_site
from common.study import load_study
from simulations.ablation.stage_cache import StageCache

study, folders, out = load_study(Path(sys.argv[1])), sys.argv[2:4], Path(sys.argv[4])
cached = StageCache(study, [load_site(Path(folder)) for folder in folders], out)
cached.train(study.stages)
cached.train(study.stages, pooled=True)
print(*sorted(name for name in sys.modules if name.partition(".")[0] in {"clients", "common", "server", "simulations"}))
"""


def copy_of_the_code(folder: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def changed(name: str, folder: Path) -> Path:
    """Return a copy of the code with one statement more in a module."""
    file = modules_behind(name, copy_of_the_code(folder))[name]
    file.write_text(file.read_text() + "\nCHANGED = True\n")
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The project's modules that a process had loaded once it had trained all stages."""
    root = tmp_path_factory.mktemp("loaded")
    folders = [tiny.write_site(root / "north", "source", seed=1), tiny.write_site(root / "east", "target", seed=2)]
    arguments = [tiny.write_study(root / "study.yaml"), *folders, root / "out"]
    command = [sys.executable, "-c", TRAIN, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def test_each_module_that_training_loads_changes_the_key(loaded: list[str], tmp_path: Path) -> None:
    assert set(loaded) >= DECIDING
    before = code_digest(TRAINING, copy_of_the_code(tmp_path / "before"))
    assert before == code_digest(TRAINING)
    same = [name for name in loaded if code_digest(TRAINING, changed(name, tmp_path / name)) == before]
    assert same == []


@pytest.mark.parametrize("name", ["server.report.page", "clients.governance.ledger", "simulations.ablation.page"])
def test_a_module_that_training_does_not_reach_leaves_the_key(name: str, tmp_path: Path) -> None:
    assert code_digest(TRAINING, changed(name, tmp_path)) == code_digest(TRAINING)


def test_what_is_measured_hangs_on_all_that_training_hangs_on_and_more() -> None:
    behind = modules_behind("simulations.ablation.measuring")
    assert modules_behind(TRAINING).items() < behind.items()
    assert "common.metrics" in behind


def test_another_library_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_digest(TRAINING)
    real = code_version.version
    monkeypatch.setattr(code_version, "version", lambda name: "0.0" if name == "monai" else real(name))
    assert code_digest(TRAINING) != before


def test_every_way_to_import_is_followed_and_no_other_is_passed_over(tmp_path: Path) -> None:
    files = {
        "entry": "import one.plain\nfrom one import of_package\ndef f():\n    from one.lazy import x\n",
        "one/__init__": "from importlib import import_module\ndef g(n): return import_module(n or f'one.picked.{n}')\n",
        "one/plain": "from . import beside\nfrom .picked import __doc__\n",
        "one/of_package": "import json, entry\n",
        "one/lazy": "x = 'one.named'\n",
        "one/named": "",
        "one/beside": "from .deep.inner import up\n",
        "one/unused": "",
        "one/picked/__init__": "",
        "one/picked/this": "",
        "one/picked/that": "",
        "one/deep/__init__": "",
        "one/deep/inner": "from ..deep import other\nup = 1\n",
        "one/deep/other": "",
    }
    for name, text in files.items():
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    names = {name.removesuffix("/__init__").replace("/", ".") for name in files} - {"one.unused"}
    assert set(modules_behind("entry", tmp_path)) == names
    other = shutil.copytree(tmp_path, tmp_path / "other")  # a file is read once in a process
    (other / "one" / "lazy.py").write_text("import importlib\ndef h(n): return importlib.import_module(n)\n")
    with pytest.raises(ValueError, match=r"lazy.py:2: expected the package of `importlib.import_module\(n\)`"):
        modules_behind("entry", other)
    with pytest.raises(ValueError, match="found none named nothing"):
        modules_behind("nothing", tmp_path)
