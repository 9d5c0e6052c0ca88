"""Which code a number was made by: a hash of every project file that a module's imports lead to.

The closure is read from the source (`ast`), so that an import within a function counts although it has not run yet.
"""

import ast
import hashlib
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
    return {name: file for name in _closure(entry, root) if (file := _file(name, root))}


def code_digest(entry: str, root: Path = ROOT) -> str:
    """Return a hash of the files behind a module and of the versions of the libraries that they import.

    A file is read once in a process: what it was when the process began to ask is what the process runs.
    """
    distributions = _distributions()
    names = _closure(entry, root)
    files = sorted((name, _file_digest(file)) for name in names if (file := _file(name, root)))
    imported = {name.partition(".")[0] for name in names}
    libraries = sorted({(dist, version(dist)) for name in imported for dist in distributions.get(name, ())})
    return hashlib.sha256(repr((files, libraries)).encode()).hexdigest()


def _closure(entry: str, root: Path) -> set[str]:
    """Return the names of `entry` and of all that it leads to, of the project and of others."""
    if _file(entry, root) is None:
        raise ValueError(f"expected a module below {root}, found none named {entry}")
    seen: set[str] = set()
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if (file := _file(name, root)) is not None:
            waiting += _with_packages(name)
            waiting += _imported_by(name, file, root)
    return seen


def _file(name: str, root: Path) -> Path | None:
    """Return a module's file below `root`, if it is the project's own."""
    place = root.joinpath(*name.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _with_packages(name: str) -> list[str]:
    """Return `a`, `a.b` and `a.b.c` of `a.b.c`: an import runs the packages around it too."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _imported_by(name: str, file: Path, root: Path) -> Iterator[str]:
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
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from _named_at_run_time(node, file, root)


def _named_at_run_time(call: ast.Call, file: Path, root: Path) -> list[str]:
    """Return what an `import_module` may import: its one module, or every module of the package that it picks from."""
    match call.args[0]:
        case ast.Constant(str(name)):
            return [name]
        case ast.JoinedStr([ast.Constant(str(package)), *_]) if package.endswith("."):
            folder = root.joinpath(*package.split("."))
            return [package + module.stem for module in sorted(folder.glob("*.py")) if module.stem != "__init__"]
    raise ValueError(f"{file}:{call.lineno}: expected the package of `{ast.unparse(call)}` in the text itself")


_distributions = cache(packages_distributions)


@cache
def _file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
