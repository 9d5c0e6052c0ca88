"""A site's state folder: made once, and refused with a remedy where something is wrong with it."""

from pathlib import Path

import pytest
from hospital import SECRET

from clients.governance.state import State


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
