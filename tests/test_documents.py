"""The documents cite nothing that does not exist, and their table of what leaves is the contract's."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from crossprobe import COMMANDS, main

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TEXTS = {document.name: document.read_text(encoding="utf-8") for document in DOCUMENTS}
THREATS = TEXTS["threat-model.md"]
#: A path of this repository: a folder of it, and then a file's name or a slash at the end.
PATH = re.compile(
    r"(?<![\w./-])((?:clients|common|configs|deploy|docs|server|simulations|tests)/[\w./-]*(?:\.(?:py|md|ya?ml|conf|json|j2)|/))"
)

ROOMS = ("clients", "common", "server", "simulations", "tests")
#: A module of ours, or a name in one; `server.key` and `server.crt` are files.
DOTTED = re.compile(r"`((?:clients|common|server|simulations)(?:\.\w+)+)`(?<!`server\.key`)(?<!`server\.crt`)")


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", TEXTS)
def test_every_test_that_a_document_cites_exists(name: str) -> None:
    cited = set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", TEXTS[name]))
    assert TEXTS[name].count("::test_") == len(re.findall(r"tests/[\w/]+\.py::test_\w+", TEXTS[name]))
    missing = [(file, test) for file, test in cited if test not in functions(ROOT / file)]
    assert missing == []


@pytest.mark.parametrize("name", TEXTS)
def test_every_path_and_link_of_a_document_exists(name: str) -> None:
    folder = ROOT if name == "README.md" else ROOT / "docs"
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", TEXTS[name]) if "://" not in link]
    paths = PATH.findall(TEXTS[name])
    missing = [link for link in links if not (folder / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_every_name_of_code_in_a_document_is_defined_in_its_file() -> None:
    named = {found for text in TEXTS.values() for found in re.findall(r"`([\w/]+\.py)::(\w+)`", text)}
    assert len(named) > 50
    missing = [f"{file}::{name}" for file, name in named if not _defines(ROOT / file, name)]
    assert missing == []


def _defines(file: Path, name: str) -> bool:
    return (
        file.exists()
        and re.search(rf"^\s*((?:async )?(?:def|class) )?{name}\b(?(1)|:)", file.read_text(), re.MULTILINE) is not None
    )


def test_every_dotted_name_in_code_and_documents_leads_somewhere() -> None:
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*") if file.suffix in (".py", ".j2")]
    named = {(file, name) for file in (*files, *DOCUMENTS) for name in DOTTED.findall(file.read_text("utf-8"))}
    assert len(named) > 50
    missing = [f"{file.relative_to(ROOT)}: {name}" for file, name in named if not _leads_somewhere(name)]
    assert missing == []


def _leads_somewhere(name: str) -> bool:
    place, rest = ROOT, name.split(".")
    while rest and (place / rest[0]).is_dir():
        place /= rest.pop(0)
    if rest and (place / f"{rest[0]}.py").is_file():
        place /= f"{rest.pop(0)}.py"
    elif rest:
        place /= "__init__.py"
    return not rest or (place.is_file() and set(rest) <= _names(place))


@cache
def _names(file: Path) -> set[str]:
    """All that a module's code defines, imports or assigns, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.alias(name=name, asname=other):
                names.add(other or name)
    return names


def test_every_command_that_a_document_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    named = {found for text in TEXTS.values() for found in re.findall(r"crossprobe ([a-z]+)(?: ([a-z-]+))?", text)}
    commands = {(command, action) for command, action in named if command in COMMANDS}
    assert len(commands) > 15
    for command, action in commands:
        words = [command, action] if command in ("site", "ledger", "study", "import") and action else [command]
        assert main([*words, "--help"]) == 0, f"{words}: {capsys.readouterr().err}"


def test_the_hospitals_table_of_what_leaves_is_what_the_command_prints() -> None:
    _, begin, rest = TEXTS["hospital.md"].partition("<!-- begin: crossprobe site disclosure -->\n")
    table, end, _ = rest.partition("<!-- end: crossprobe site disclosure -->")
    assert begin
    assert end
    # a process of its own: a test before this one may have brought tasks of the ablations, which no hospital knows
    command = [sys.executable, "-m", "crossprobe", "site", "disclosure"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert table == printed, "put the output of `crossprobe site disclosure` between the two marks"


def test_threats_are_numbered_and_each_has_its_control_its_test_and_what_remains() -> None:
    _, *sections = re.split(r"^### ", THREATS, flags=re.M)
    assert [section.partition(".")[0] for section in sections] == [f"T{n}" for n in range(1, len(sections) + 1)]
    for section in sections:
        assert re.findall(r"^\*\*(\w+)\.\*\*", section, flags=re.M) == ["Control", "Test", "Remains"], section[:60]
        assert "::test_" in section, section[:60]
    named = {int(number) for number in re.findall(r"\bT(\d+)\b", THREATS)}
    assert named == set(range(1, len(sections) + 1))
