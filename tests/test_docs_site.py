"""The documents as a site: built without a network, loads nothing from one, has no dead link, names real commands."""

import re
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
import typer
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

import crossprobe

ROOT = Path(__file__).parent.parent
ROLES = sorted((ROOT / "docs").glob("role-*.md"))
#: What a browser fetches by itself while it shows a page.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src",
           "embed": "src", "object": "data", "image": "href", "use": "href"}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:

        def no_network(*_: object) -> NoReturn:
            raise AssertionError("the site was built with a network")

        patch.setattr(socket.socket, "connect", no_network)
        patch.setattr(socket, "getaddrinfo", no_network)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        out = tmp_path_factory.mktemp("site")
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(out)))
        yield out


class Loads(HTMLParser):
    """Collects every address that a page has fetched without a click."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        if tag == "link" and not {"canonical", "next", "prev", "edit"} & set((own.get("rel") or "").split()):
            self.found.append(own.get("href") or "")
        self.found += [own.get(FETCHED[tag]) or ""] if tag in FETCHED else []
        self.found += re.findall(r"url\(([^)]*)\)", own.get("style") or "")
        self.found += [part.split()[0] for part in (own.get("srcset") or "").split(",") if part.strip()]


def test_no_page_loads_anything_from_a_network(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text, loads = page.read_text("utf-8"), Loads()
        loads.feed(text)
        assert len(loads.found) > 3
        for address in loads.found:
            assert not re.match(r"\s*['\"]?(?:https?:)?//", address, re.IGNORECASE), (page.name, address)
            if not address.startswith(("data:", "#")) and page.name != "404.html":
                assert (page.parent / address.partition("?")[0].partition("#")[0]).exists(), (page.name, address)
        assert 'class="mermaid"' not in text  # the theme would fetch its drawing program
        assert '"repo_url"' not in text
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s;]+)", sheet.read_text("utf-8")):
            assert not re.match(r"(?:https?:)?//", address), (sheet.name, address)


@pytest.mark.parametrize(
    "line", ["[gone](gone.md)", "[gone](hospital.md#no-such-heading)", "![gone](gone.png)", "[out](../clients/cli.py)"]
)
def test_a_dead_link_fails_the_build(tmp_path: Path, line: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{line}\n")
    (tmp_path / "docs" / "hospital.md").write_text("# Hospital\n")
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    (tmp_path / "mkdocs.yml").write_text(text[: text.index("nav:")])
    with pytest.raises(Abort):
        build(load_config(str(tmp_path / "mkdocs.yml")))


def test_every_document_is_in_the_navigation(site: Path) -> None:
    page = (site / "index.html").read_text("utf-8")
    missing = [file.stem for file in (ROOT / "docs").glob("*.md") if f"{file.stem}.html" not in page]
    assert [name for name in missing if name != "index"] == []


def commands_of(page: Path) -> list[list[str]]:
    """The words of every `crossprobe` command on a page, in its blocks and in its tables."""
    text = re.sub(r"\\\n\s*", "", page.read_text("utf-8"))
    found = re.findall(r"(?:^|desk |console |`)crossprobe ([^`\n]+)", text, re.MULTILINE)
    return [re.findall(r"\"[^\"]*\"|\S+", line) for line in found]


def test_the_pages_for_each_role_name_commands_and_options_that_exist() -> None:
    assert len(ROLES) == 4
    lines = [words for page in ROLES for words in commands_of(page)]
    assert len(lines) > 25
    for words in lines:
        command: Any = typer.main.get_command(crossprobe.app)
        context = click.Context(command)
        while isinstance(command, click.Group):
            command = command.get_command(context, words.pop(0))
            assert command is not None, words
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, words
