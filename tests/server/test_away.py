"""A run that fails names the hospitals that are registered and not connected."""

from pathlib import Path
from typing import Any, cast

import pytest

from common.errors import RunError
from server.federation.deployment import follow
from server.federation.flower_cli import FlowerCli, Node


class Failed:
    """A SuperLink's answers about a run that failed."""

    def __init__(self, online: set[str], *, there: bool = True) -> None:
        self.online, self.there = online, there

    def follow(self, *_: Any) -> None:
        raise RunError("needs 1 target site(s), found 0")

    def nodes(self) -> list[Node]:
        if not self.there:
            raise RunError("nobody answers")
        return [Node("1", "north", "north" in self.online), Node("2", "east", "east" in self.online)]


def said(cli: Failed, out: Path) -> str:
    with pytest.raises(RunError) as error:
        follow(cast(FlowerCli, cli), "7", out, lambda record: None)
    return str(error.value)


def test_it_names_who_is_not_connected(tmp_path: Path) -> None:
    text = said(Failed({"north"}), tmp_path)
    assert text.startswith("needs 1 target site(s), found 0")
    assert "not connected now: east. There," in text


def test_where_all_are_connected_or_nobody_can_be_asked_the_runs_own_error_stands_alone(tmp_path: Path) -> None:
    assert said(Failed({"north", "east"}), tmp_path) == "needs 1 target site(s), found 0"
    assert said(Failed(set(), there=False), tmp_path) == "needs 1 target site(s), found 0"
