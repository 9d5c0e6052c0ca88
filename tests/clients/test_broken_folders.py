"""Whatever lies in a folder, the commands on it end with a finding or a result: no traceback, little memory."""

import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from site_folder import good_site

from clients.data.site import check_site
from crossprobe import main

SNIPPETS = (
    b"\x00", b"\xff", b'"', b"'", b";", b",", b"\n", b"\r", b"\t", b":", b"{", b"[", b"&a ", b"*a", b"!!", b"- ", b"? ",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3", b"../", b"/etc/passwd", b"9" * 400, b"nan", b"-1", b"1e999", b"<<: ", b"%",
    "\u202e".encode(), "é".encode(), b"\x1b[2J", b"A" * 5000, b"|", b">", b"#", b"---\n", b"...\n",
)  # fmt: skip


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A file with a few bytes replaced, cut out, doubled or put in."""
    found = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        place, kind = int(rng.integers(0, len(found) + 1)), int(rng.integers(0, 4))
        snippet = SNIPPETS[rng.integers(len(SNIPPETS))]
        if kind == 0:
            found[place : place + len(snippet)] = snippet
        elif kind == 1:
            found[place:place] = snippet
        elif kind == 2:
            del found[place : place + int(rng.integers(1, 40))]
        else:
            found[place:place] = found[place : place + 60]
    return bytes(found)


def test_a_folder_that_may_not_be_entered_is_not_said_to_be_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = good_site(tmp_path / "north")
    is_file = Path.is_file

    def denied(path: Path) -> bool:
        if path.parent.name == "images":
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", denied)
    site, findings = check_site(folder)
    assert site is None
    assert {finding.code for finding in findings} == {"unreadable-image"}
    assert all("Permission denied" in own.message and "may read it" in own.remedy for own in findings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_site(tmp_path_factory.mktemp("fuzz") / "north")


@pytest.mark.parametrize("name", ["site.yaml", "manifest.csv", "images/p1_0.png", "masks/p1_0.png"])
def test_a_folder_with_a_broken_file_has_findings_or_is_whole(folder: Path, name: str) -> None:
    rng = np.random.default_rng(len(name))
    content = (folder / name).read_bytes()
    broken = 0
    try:
        for _ in range(100):
            (folder / name).write_bytes(mutated(content, rng))
            site, findings = check_site(folder)
            assert (site is None) == bool(findings)
            assert all(str(finding).isprintable() for finding in findings)
            broken += site is None
    finally:
        (folder / name).write_bytes(content)
    assert broken > 10


@pytest.mark.parametrize("name", ["site.yaml", "manifest.csv"])
def test_the_command_says_what_is_wrong_in_few_lines(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "site")
    rng = np.random.default_rng(1)
    content = (folder / name).read_bytes()
    for _ in range(40):
        (tmp_path / "site" / name).write_bytes(mutated(content, rng))
        assert main(["site", "check", str(tmp_path / "site")]) in (0, 1)
        assert len(capsys.readouterr().err.splitlines()) < 60


def bomb(path: Path) -> None:
    """600 kB that unpack to 600 MB of pixels: 13,000 x 12,000 of them, all black."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 13_000 * 4)
    packed = b"".join([packer.compress(row) for _ in range(12_000)]) + packer.flush()
    head = struct.pack(">II", 13_000, 12_000) + bytes([8, 6, 0, 0, 0])
    chunks = [(b"IHDR", head), (b"IDAT", packed), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("command", ["check", "new"])
def test_an_image_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, command: str) -> None:
    folder = good_site(tmp_path / "north")
    bomb(folder / "images/p1_0.png")
    words = ["check", str(folder)]
    if command == "new":
        words = [
            "new",
            str(folder / "images"),
            str(tmp_path / "out"),
            "--role",
            "target",
            "--patient-pattern",
            "(p1_0)",
        ]
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (500 << 20,) * 2);"

    ended = subprocess.run(
        [sys.executable, "-c", limit + "from crossprobe import main; sys.exit(main(['site', *sys.argv[1:]]))", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert ended.returncode == 1
    assert "huge-image" in ended.stderr + ended.stdout
    assert "13000 x 12000 px" in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
