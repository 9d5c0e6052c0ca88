"""A site's state folder: made once, and refused with a remedy where something is wrong with it."""

from pathlib import Path

import pytest
from hospital import SECRET

from clients.governance.state import State
from clients.node.keys import make_node_keys
from common.errors import SiteStateError


def test_a_state_folder_has_its_secret_made_once(tmp_path: Path) -> None:
    State.create(tmp_path / "state")
    secret = (tmp_path / "state" / "secret").read_bytes()
    assert len(set(secret)) > 8
    with pytest.raises(Exception, match="already has its secret"):
        State.create(tmp_path / "state")
    assert (tmp_path / "state" / "secret").read_bytes() == secret
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [
        "answered",
        "approvals",
        "secret",
        "signing.pub",
    ]


@pytest.mark.parametrize(
    ("content", "mode", "text"),
    [(None, 0, "site init"), (b"x", 0o600, "forget the ledger"), (SECRET, 0o644, "chmod 600")],
)
def test_a_state_folder_that_is_not_right_is_named_with_the_next_step(
    content: bytes | None, mode: int, text: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
        (tmp_path / "secret").chmod(mode)
    with pytest.raises(Exception, match=text):
        State(tmp_path)


@pytest.mark.parametrize("there", ["site.yaml", "superexec.secret"])
def test_a_secret_is_not_made_where_something_else_lies(there: str, tmp_path: Path) -> None:
    (tmp_path / there).touch()
    with pytest.raises(SiteStateError, match=r"Give one of its own"):
        State.create(tmp_path)
    assert not (tmp_path / "secret").exists()


def test_a_nodes_keys_are_not_made_where_the_worker_keeps_its_secret(tmp_path: Path) -> None:
    State.create(tmp_path)
    with pytest.raises(SiteStateError, match="folder of a worker's state"):
        make_node_keys(tmp_path)
    assert not (tmp_path / "node").exists()
