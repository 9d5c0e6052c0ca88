"""The desk of one hospital, and a browser before it."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from visitor import Visitor, let_in


@pytest.fixture
def folder(tmp_path: Path, pair: Sequence[Path]) -> Path:
    """A site's folder that a test may change."""
    return Path(shutil.copytree(pair[0], tmp_path / "north"))


@pytest.fixture
def browser(tmp_path: Path, folder: Path) -> Iterator[Visitor]:
    """A browser that was let in, at a desk whose data were checked."""
    with let_in(tmp_path, folder) as visitor:
        yield visitor


@pytest.fixture
def stranger(browser: Visitor) -> Visitor:
    """One that was not let in."""
    return Visitor(browser.socket, browser.gate, browser.desk)
