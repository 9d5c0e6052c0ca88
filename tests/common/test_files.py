"""A file is written whole, for its own user, and through no link that somebody laid; a lock is held by one."""

import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import RunError
from common.files import PUBLIC, exclusive, private_folder, write_atomically
from common.run_folder import RunFolder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_file_is_its_users_alone_and_a_public_one_is_not_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    write_atomically(tmp_path / "own", b"x")
    write_atomically(tmp_path / "for-all", b"x", mode=PUBLIC)
    private_folder(tmp_path / "folder" / "inner")
    assert (mode(tmp_path / "own"), mode(tmp_path / "for-all")) == (0o600, 0o644)
    assert mode(tmp_path / "folder" / "inner") == 0o700


def test_a_file_that_is_not_finished_is_open_to_nobody_else_and_its_name_is_another_each_time(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that can be guessed is one at which somebody lays a link to what shall be overwritten."""
    seen: list[Path] = []
    opened = os.open

    def watching(path: str | os.PathLike[str], flags: int, *more: int, **others: int) -> int:
        descriptor = opened(path, flags, *more, **others)
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL
            assert mode(Path(path)) & 0o077 == 0
            seen.append(Path(path))
        return descriptor

    monkeypatch.setattr(os, "open", watching)
    for _ in range(2):
        write_atomically(tmp_path / "own", b"x", mode=PUBLIC)
    assert len(set(seen)) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "own"]


def test_two_may_write_one_file_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, began = os.fsync, list[int]()

    def fsync(descriptor: int) -> None:
        if not began:  # the second begins and ends within the first
            began.append(descriptor)
            write_atomically(tmp_path / "report", b"second")
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "report", b"first")
    assert (tmp_path / "report").read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [tmp_path / "report"]


def test_a_new_file_replaces_none(tmp_path: Path) -> None:
    write_atomically(tmp_path / "secret", b"first", new=True)
    with pytest.raises(RunError, match="secret: File exists"):
        write_atomically(tmp_path / "secret", b"second", new=True)
    assert (tmp_path / "secret").read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [tmp_path / "secret"]


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_call_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}"))
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append("replace"), replace(a, b)))
    write_atomically(tmp_path / "state", b"x")
    assert [re.sub(r"\.\w+\.part$", ".part", call) for call in seen] == [
        "fsync .state.part",
        "replace",
        f"fsync {tmp_path.name}",
    ]


HOLD = """
import sys
from pathlib import Path
from common.files import exclusive
with exclusive(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_and_free_once_that_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=r"^in use$"), exclusive(lock, "in use"):
            pass
        child.kill()
    with exclusive(lock, "in use"):
        assert mode(lock) == 0o600


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    lock, held, over = tmp_path / "lock", threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive(lock, "in use"):
            held.set()
            over.wait(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    with exclusive(lock, "in use", wait_s=30):
        assert not thread.join(10)
        assert not thread.is_alive()


def test_a_link_in_the_locks_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"cannot make the lock file .*lock: "), exclusive(tmp_path / "lock", "in use"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_folder_is_closed_to_others_and_its_names_are_its_own(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "first")
    with run.only_one():
        write_atomically(run.summary, b"{}")
        assert mode(run.path) == 0o700
        assert mode(run.summary) == mode(run.lock) == 0o600
        with pytest.raises(RunError, match=r"another process is still at work in .*first"), run.only_one():
            pass
    names = [name for name, value in vars(RunFolder).items() if isinstance(value, property)]
    places = {str(getattr(run, name)) for name in names}
    assert len(places) == len(names)
    assert not run.refuse_a_run()
    private_folder(run.checkpoint)
    write_atomically(run.state, b"{}")
    with pytest.raises(RunError, match=r"already holds a run.*--resume"):
        run.refuse_a_run()
