"""The command `crossprobe` as a process: what a shell sees of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hospital import SECRET

from clients.governance.ledger import Ledger, entry
from clients.governance.state import State


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["rich", "plain"])
@pytest.mark.parametrize("lines", [1, 1000], ids=["in the last flush", "before"])
def test_a_reader_that_goes_away_ends_a_command_quietly(
    lines: int, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    ledger = Ledger(State.create(tmp_path / "state", SECRET).ledger)
    for _ in range(lines):
        ledger.append(entry("in", b"x"))
    command = [sys.executable, "-m", "crossprobe", "ledger", "show", "--state", str(tmp_path / "state"), *more]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
