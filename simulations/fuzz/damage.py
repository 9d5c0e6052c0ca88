"""How inputs are made bad: damaged bytes and texts, bombs, names with every character. All drawn from one generator."""

import gzip
import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from simulations.fuzz import files

Rng = np.random.Generator
#: Values that a text's value is replaced by.
VALUES = (
    "", "null", "~", "-1", "0", "1", "1e999", "-1e999", "nan", ".nan", ".inf", "1e308", "9" * 400, "0x7fffffffffffffff",
    "2147483648", "-9223372036854775809", "0.1,2", "1.2.3", "true", "[]", "{}", "[[[[]]]]", "{a: {b: {c: 1}}}", "''",
    '"', "'", "../../../etc/passwd", "/etc/passwd", "C:\\windows", "a" * 5000, "\u202e\u0000", "\ud83d\ude00",
    "\x1b[31mred\x1b[0m", "%s%n%x", "{{7*7}}", "<script>alert(1)</script>", "=cmd|' /C calc'!A0", "*a", "2027-02-30",
    "!!python/object:os.system", "&a [*a, *a]", "010", "1:30", "\ufeff", "\u2028", "a: b: c", "- - -", "? x", "é" * 200,
)  # fmt: skip
#: Names of files that a shell, a terminal or another system takes for something else.
NAMES = (
    "--help", "-", "-rf", "con", "nul.png", "a" * 250, "\u202egnp.nacs", "a\nb", "\x1b[2J", "~", "$(id)", "`id`", "a;b",
    "*", "?", "'", '"', "\\", "%00", "é" * 100, ".. ", "...", " ", "\t",
)  # fmt: skip
#: Numbers that a header's number is replaced by.
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def bytes_of(rng: Rng, content: bytes) -> bytes:
    """A damaged copy of a file, most often in its header."""
    if content[:2] == b"\x1f\x8b" and rng.random() < 0.6:
        return gzip.compress(bytes_of(rng, gzip.decompress(content)))
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        head = min(len(damaged), int(rng.choice([64, 400, 2000, len(damaged)])))
        if head < 9:
            return bytes(damaged)
        place = int(rng.integers(0, head - 8))
        way = rng.integers(0, 9)
        if way <= 1:
            damaged[place] = int(rng.integers(0, 256))
        elif way == 2:
            damaged[place] ^= 1 << int(rng.integers(0, 8))
        elif way <= 4:
            order = str(rng.choice(["<H", ">H", "<I", ">I"]))
            number = int(rng.choice(NUMBERS)) & (0xFFFF if order[1] == "H" else 0xFFFFFFFF)
            damaged[place : place + struct.calcsize(order)] = struct.pack(order, number)
        elif way == 5:
            del damaged[place : place + int(rng.integers(1, 64))]
        elif way == 6:
            damaged[place:place] = rng.bytes(int(rng.integers(1, 64)))
        elif way == 7:
            length = int(rng.integers(1, 200))
            damaged[place : place + length] = bytes([int(rng.choice([0, 255]))]) * length
        else:
            del damaged[int(rng.integers(0, len(damaged))) :]
    return bytes(damaged)


def text_of(rng: Rng, content: bytes) -> bytes:
    """A wrong copy of a YAML, CSV or JSON text."""
    text = content.decode()
    for _ in range(int(rng.integers(1, 4))):
        lines = text.split("\n")
        line, way = int(rng.integers(0, len(lines))), rng.integers(0, 8)
        if way <= 2:
            words = list(re.finditer(r"[^\s,;:\[\]{}]+", text))
            if words:
                word = words[int(rng.integers(0, len(words)))]
                text = text[: word.start()] + str(rng.choice(VALUES)) + text[word.end() :]
            continue
        if way == 3:
            lines.insert(line, lines[int(rng.integers(0, len(lines)))])
        elif way == 4:
            del lines[line]
        elif way == 5:
            lines[line] = " " * int(rng.integers(0, 9)) + str(rng.choice(VALUES)) + ": " + lines[line].strip()
        elif way == 6:
            lines[line] = lines[line].replace(
                str(rng.choice(list(",:;[]{}\"'-"))), str(rng.choice(list(",:;|\t\"'\x00")))
            )
        else:
            lines[line] = lines[line][: int(rng.integers(0, len(lines[line]) + 1))]
        text = "\n".join(lines)
    way = rng.integers(0, 12)
    encoded = text.encode(
        {0: "utf-16", 1: "utf-32", 2: "utf-8-sig", 3: "utf-16-be"}.get(int(way), "utf-8"), "surrogatepass"
    )
    return bytes_of(rng, encoded) if way == 4 else encoded


def json_of(rng: Rng, content: Any) -> bytes:
    """A wrong copy of a JSON value: one of its values, at any depth, is something else."""
    values: list[Any] = [
        None,
        True,
        -1,
        0,
        2**70,
        1e308,
        "",
        "../x",
        "a" * 999,
        [],
        {},
        [[[]]],
        [1, 2, 3],
        {"a": 1},
        65536,
    ]
    if rng.random() < 0.3:
        return text_of(rng, json.dumps(content).encode())
    content = json.loads(json.dumps(content))
    at = content
    while True:
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = keys[int(rng.integers(0, len(keys)))]
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.75:
            at = at[key]
            continue
        if isinstance(at, dict) and rng.random() < 0.3:
            del at[key]
        else:
            at[key] = values[int(rng.integers(0, len(values)))]
        return json.dumps(content).encode()


def name(rng: Rng) -> str:
    """A file's name of every kind of character but the slash; also of bytes that are no text."""
    way = rng.integers(0, 6)
    if way == 0:
        letters = rng.integers(1, 0x110000, int(rng.integers(1, 20)))
        text = "".join(chr(own) for own in letters if own != 0x2F and not 0xD800 <= own < 0xE000)
    elif way == 1:
        text = os.fsdecode(bytes(own for own in rng.bytes(int(rng.integers(1, 60))) if own not in (0, 0x2F)))
    elif way == 2:
        text = "".join(chr(own) for own in rng.integers(1, 128, 30) if own != 0x2F)
    elif way == 3:
        text = str(rng.choice(NAMES))
    else:
        text = "scan.png"
    cut = os.fsencode(text)[:200] or b"x"
    return os.fsdecode(cut) if cut not in (b".", b"..") else "x"


def _png(height: int, width: int, rows: bytes = b"") -> bytes:
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(own)) + kind + own + struct.pack(">I", zlib.crc32(kind + own)) for kind, own in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _large(height: int, width: int, mode: str = "L") -> bytes:
    """A whole picture as large as allowed, or larger."""
    buffer = io.BytesIO()
    tile = np.tile(files.speckle(0, 64, 64), (-(-height // 64), -(-width // 64)))[:height, :width]
    Image.fromarray(tile).convert(mode).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _nifti_claim(shape: tuple[int, ...], zeros: int, offset: int = 352) -> bytes:
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", offset
    return _packed_zeros(header.binaryblock + bytes(4 + 2**20), zeros)


def _nrrd_claim(sizes: str, zeros: int) -> bytes:
    head = f"NRRD0004\ntype: uchar\ndimension: {len(sizes.split())}\nsizes: {sizes}\nencoding: gzip\n\n".encode()
    return head + _packed_zeros(b"", zeros)


def _bmp(height: int, width: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, width, height, 1, 8, 1, 0, 0, 0, 0, 0)


def _packed_zeros(head: bytes, zeros: int) -> bytes:
    """Gzip of a head and zeros, without ever holding them."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    parts = [packer.compress(head)] + [packer.compress(bytes(2**20)) for _ in range(zeros >> 20)]
    return b"".join(parts) + packer.flush()


def _deflated_bomb() -> bytes:
    """DICOM whose whole content is packed: 2 MiB that become 2 GiB."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    head = files.dicom("deflated")
    start = 132 + 12 + struct.unpack("<I", head[140:144])[0]
    inner = zlib.decompress(head[start:], -15)[: -files.loop().size - 12]
    parts = [packer.compress(inner + b"\xe0\x7f\x10\x00OB\0\0" + struct.pack("<I", 2**31 - 2))]
    parts += [packer.compress(bytes(2**24)) for _ in range(128)]
    return head[:start] + b"".join(parts) + packer.flush()


def _many_frames(count: int) -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.new("L", (16, 16), own % 256) for own in range(count)]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=10)
    return buffer.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "png of a gigapixel": lambda: _png(32768, 32768, rows=bytes(2**25)),
    "png of 2^31 pixels a side": lambda: _png(2**31 - 1, 2**31 - 1),
    "png of no pixels": lambda: _png(0, 0),
    "png with more rows than it tells": lambda: _png(64, 64, rows=bytes(2**28)),
    "png, 4096 x 4096": lambda: _large(4096, 4096),
    "png, 4096 x 4096 with colour": lambda: _large(4096, 4096, "RGB"),
    "png, 1 x 65535": lambda: _large(1, 65535),
    "png, 65535 x 16": lambda: _large(65535, 16),
    "png, 16 x 65535": lambda: _large(16, 65535),
    "gif of 5000 frames": lambda: _many_frames(5000),
    "nifti that claims 30000 x 30000 x 300": lambda: _nifti_claim((30000, 30000, 300), 1000),
    "nifti of 16 x 16 with a gigabyte behind": lambda: _nifti_claim((16, 16), 2**30),
    "nifti of 16 x 16 that begins a gigabyte on": lambda: _nifti_claim((16, 16), 2**30, 2**30),
    "nifti, 4096 x 4096 x 8 of zeros": lambda: _nifti_claim((4096, 4096, 8), 2**27),
    "nifti, 64 x 64 x 32767 of zeros": lambda: _nifti_claim((64, 64, 32767), 2**27),
    "nrrd that claims 90000 x 90000": lambda: _nrrd_claim("90000 90000", 2**26),
    "nrrd of 16 x 16 with a gigabyte behind": lambda: _nrrd_claim("16 16", 2**30),
    "nrrd, 4096 x 4096 x 31 of zeros": lambda: _nrrd_claim("4096 4096 31", 2**29),
    "nrrd, 4096 x 4096 x 15 of zeros": lambda: _nrrd_claim("4096 4096 15", 15 * 2**24),
    "dicom, deflated, of two gigabytes": _deflated_bomb,
    "dicom that claims 65535 x 65535": lambda: files.dicom(Rows=65535, Columns=65535),
    "dicom that claims 100000 frames": lambda: files.dicom(NumberOfFrames=100_000),
    "dicom, jpeg2000, that claims 3000 frames": lambda: files.dicom("jpeg2000", NumberOfFrames=3000),
    "bmp that claims 60000 x 60000": lambda: _bmp(60000, 60000),
    "nothing": lambda: b"",
    "a megabyte of noise": lambda: np.random.default_rng(0).bytes(2**20),
}  # fmt: skip
TEXT_BOMBS: dict[str, Callable[[], bytes]] = {
    "yaml of aliases": lambda: b"a: &a [1]\n" + b"".join(b"b%d: &b%d [*a, *a, *a]\n" % (n, n) for n in range(50)),
    "nested 100000 deep": lambda: b"[" * 100_000,
    "yaml nested 100000 deep": lambda: b"a: " + b"{a: " * 100_000,
    "a number of a million digits": lambda: b"seed: " + b"9" * 1_000_000,
    "thirty megabytes": lambda: b"name: x\n" * 4_000_000,
    "a line of ten megabytes": lambda: b"image,patient," + b"x" * 10_000_000,
    "100000 columns": lambda: b"image,patient," + b"x," * 100_000,
    "100000 rows": lambda: b"image,patient\n" + b"a.png,p\n" * 100_000,
    "zeros": lambda: bytes(100_000),
    "nothing": lambda: b"",
    "noise": lambda: np.random.default_rng(0).bytes(10_000),
}
