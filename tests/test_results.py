"""The results page: every number comes from a committed summary."""

import json
from pathlib import Path

import pytest

from common.errors import RunError
from simulations.results import page

DOCS = Path(__file__).parent.parent / "docs"


def test_the_committed_page_is_what_the_committed_summaries_give() -> None:
    assert (DOCS / "results.md").read_text(encoding="utf-8") == page(DOCS / "results")


def test_every_table_stands_with_command_seed_hardware_and_time() -> None:
    text = page(DOCS / "results")
    for file in (DOCS / "results").glob("*.json"):
        summary = json.loads(file.read_text(encoding="utf-8"))
        assert f"## {file.stem}\n\n`{summary['command']}`\n\nSeed {summary['seed']}; {summary['hardware']}; " in text


def test_a_folder_without_summaries_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"needs notes\.md and a summary\.json"):
        page(tmp_path)
