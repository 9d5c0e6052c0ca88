"""What is taken out of an image, and what stays."""

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "numpy/core.py": True,
    "numpy/tests/test_core.py": False,
    "numpy/tests/deeper/tests/data.bin": False,
    "numpy/testing/__init__.py": True,
    "torch/lib/libtorch_cpu.so": True,
    "torch/include/torch/script.h": False,
    "torch/test/test_nn.py": False,
    "torch/bin/torch_shm_manager": True,
    "torch/bin/test_api": False,
    "torch/bin/models/upgrader.ptl": False,
}


def run(packages: Path, *arguments: str) -> str:
    """Run deploy/image.py as an image's Python would, with one folder of packages."""
    code = f"import sys, runpy; sys.path[:] = [p for p in sys.path if '-packages' not in p] + [{str(packages)!r}];"
    code += f"sys.argv = ['image.py', *{list(arguments)!r}]; runpy.run_path('deploy/image.py', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_tests_and_headers_go_and_what_runs_stays(tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    for name in FILES:
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_bytes(bytes(11_000_000 if name.endswith(".so") else 10))
    run(packages, "--slim")
    assert {name: (packages / name).exists() for name in FILES} == FILES
    run(packages, "--slim")  # nothing is left to remove
    assert "| torch | 11 |" in run(packages)
    assert "| all others | 0 |" in run(packages)


def test_the_bill_of_materials_is_what_is_installed_with_licences_and_locked_hashes() -> None:
    done = subprocess.run(
        [sys.executable, "deploy/image.py", "--sbom"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    bill = json.loads(done.stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    parts = {part["name"]: part for part in bill["components"]}
    places = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    assert {(name, part["version"]) for name, part in parts.items()} == {
        (package.name, package.version) for package in distributions(path=places)
    }
    references = [part["bom-ref"] for part in parts.values()]
    assert len(set(references)) == len(references)
    assert {"expression": "Apache-2.0"} in parts["crossprobe"]["licenses"]
    assert parts["torch"]["licenses"]
    depends = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert parts["numpy"]["bom-ref"] in depends[parts["monai"]["bom-ref"]]
    assert set().union(*depends.values()) <= set(references)
    locks = [ROOT / "deploy" / "lock" / f"{layer}.lock" for layer in ("node", "torch-index", "worker")]
    for name in ("flwr", "monai"):
        (reference,) = parts[name]["externalReferences"]
        lines = [f"    --hash=sha256:{each['content']}" for each in reference["hashes"]]
        assert any(f"{name}=={parts[name]['version']} \\\n" + " \\\n".join(lines) in f.read_text() for f in locks)
    assert "externalReferences" not in parts["pytest"]  # in no lock


def test_a_package_that_no_lock_names_is_in_the_bill_without_hashes(tmp_path: Path) -> None:
    folder = tmp_path / "site-packages"
    for name, version in (("numpy", "0.0.1"), ("stranger", "1.0")):
        (folder / f"{name}-{version}.dist-info").mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        text += "Classifier: License :: OSI Approved :: MIT License\n"
        (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(text)
    components = json.loads(run(folder, "--sbom"))["components"]
    assert [(part["purl"], part["licenses"]) for part in components] == [
        ("pkg:pypi/numpy@0.0.1", [{"license": {"name": "MIT License"}}]),
        ("pkg:pypi/stranger@1.0", [{"license": {"name": "MIT License"}}]),
    ]
    assert not any("externalReferences" in part for part in components)
