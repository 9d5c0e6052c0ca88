"""The desk of one hospital, and a browser before it."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hospital import SECRET
from tiny import write_study
from visitor import Visitor, wait_for

from clients.desk.desk import Desk
from clients.desk.gate import Gate
from clients.desk.server import serving
from clients.governance.state import State


@pytest.fixture
def folder(tmp_path: Path, pair: Sequence[Path]) -> Path:
    """A site's folder that a test may change."""
    return Path(shutil.copytree(pair[0], tmp_path / "north"))


@pytest.fixture
def browser(tmp_path: Path, folder: Path) -> Iterator[Visitor]:
    """A browser that was let in, at a desk whose data were checked."""
    studies = tmp_path / "studies"
    studies.mkdir()
    write_study(studies / "study.yaml")
    desk, gate = Desk(folder, State.create(tmp_path / "state", SECRET), studies), Gate()
    desk.check_data()
    wait_for(desk)
    with serving(desk, gate, tmp_path / "d.sock"):
        yield Visitor(tmp_path / "d.sock", gate, desk).signed_in()


@pytest.fixture
def stranger(browser: Visitor) -> Visitor:
    """One that was not let in."""
    return Visitor(browser.socket, browser.gate, browser.desk)
