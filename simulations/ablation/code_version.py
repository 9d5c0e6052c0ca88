"""Which code a number was made by: a hash of every project file that a module's imports lead to.

The closure is read from the source (`ast`), so that an import within a function counts although it has not run yet.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def modules_behind(entry: str, root: Path = ROOT) -> dict[str, Path]:
    """Return name -> file of a module and of every module below `root` that its imports lead to.

    Raises:
        ValueError: if `entry` is not below `root`, or one of the modules imports by a name that only shows as it runs.
    """
    if _file(entry, root) is None:
        raise ValueError(f"expected a module below {root}, found none named {entry}")
    modules: dict[str, Path] = {}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name not in modules and (file := _file(name, root)) is not None:
            modules[name] = file
            waiting += [*_with_packages(name), *_imported_by(name, file, root)]
    return modules


def code_digest(entry: str, root: Path = ROOT) -> str:
    """Return a hash of the files behind a module and of the versions of the libraries that they import.

    A file is read once in a process: what it was when the process began to ask is what the process runs.
    """
    modules = modules_behind(entry, root)
    files = sorted((name, _file_digest(file)) for name, file in modules.items())
    imported = {other.partition(".")[0] for name, file in modules.items() for other in _imported_by(name, file, root)}
    libraries = sorted({(dist, version(dist)) for name in imported for dist in _distributions().get(name, ())})
    return hashlib.sha256(repr((files, libraries)).encode()).hexdigest()


def _file(name: str, root: Path) -> Path | None:
    """Return a module's file below `root`, if it is the project's own."""
    place = root.joinpath(*name.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _with_packages(name: str) -> list[str]:
    """Return `a`, `a.b` and `a.b.c` of `a.b.c`: an import runs the packages around it too."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


@cache
def _imported_by(name: str, file: Path, root: Path) -> tuple[str, ...]:
    return tuple(_imports(name, file, root))


def _imports(name: str, file: Path, root: Path) -> Iterator[str]:
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes(), file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                around = package.rsplit(".", node.level - 1)[0]
                origin = f"{around}.{origin}".rstrip(".")
            yield origin
            yield from (whole for alias in node.names if _file(whole := f"{origin}.{alias.name}", root))
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"\w+(\.\w+)+", node.value)
        ):
            yield node.value  # followed if it names a module, such as a task's implementation
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from _named_at_run_time(node, file, root)


def _named_at_run_time(call: ast.Call, file: Path, root: Path) -> list[str]:
    """Return what an `import_module` may import: every module of the package that its text picks from.

    A module that it names in full, here or as a string elsewhere, is followed as any string that names a module.
    """
    picked = []
    for part in ast.walk(call.args[0]):
        match part:
            case ast.Constant(str(name)) if not name.endswith(".") and _file(name, root):
                picked.append(name)
            case ast.JoinedStr([ast.Constant(str(package)), *_]) if package.endswith("."):
                folder = root.joinpath(*package.split("."))
                picked += [package + module.stem for module in sorted(folder.glob("*.py")) if module.stem != "__init__"]
    if not picked:
        raise ValueError(f"{file}:{call.lineno}: expected the package of `{ast.unparse(call)}` in the text itself")
    return picked


_distributions = cache(packages_distributions)


@cache
def _file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
