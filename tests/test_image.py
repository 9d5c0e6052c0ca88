"""What is taken out of an image, and what stays."""

import subprocess
import sys
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
