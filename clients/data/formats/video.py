"""Cine loops as MP4, MOV or AVI."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from clients.data.formats.recording import Pixels, Recording, check_length, reading
from clients.data.images import PictureError, check_pixels

#: Frames a second that a player can show; a header that says more is wrong.
MAX_RATE = 1000
#: The container is told to the decoder: a file that it recognised by itself could be a list of other files.
_CONTAINERS = {b"ftyp": "mov", b"moov": "mov", b"mdat": "mov", b"wide": "mov"}


def matches(head: bytes) -> bool:
    """Whether a file begins as MP4, MOV or AVI."""
    return _container(head) != ""


def _container(head: bytes) -> str:
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    return _CONTAINERS.get(head[4:8], "")


def read(path: Path) -> Recording:
    """The frames of the file's first video. Raises PictureError."""
    import av

    with reading("video"):
        with path.open("rb") as file:
            container = _container(file.read(16))
        with av.open(str(path), format=container) as video:
            if not video.streams.video:
                raise PictureError("no-pixels", "expected a video, found a file without one", "Leave it out")
            stream = video.streams.video[0]
            # one that tells nonsense is noticed while it is decoded
            return Recording(lambda: _frames(path, container), max(0, stream.frames), stream.height, stream.width)


def rate_of(path: Path) -> Fraction:
    """Frames a second of the file's first video, 25 where it does not say. Raises PictureError."""
    import av

    with path.open("rb") as file:
        container = _container(file.read(16))
    with reading("video"), av.open(str(path), format=container) as video:
        rate = video.streams.video[0].average_rate
        return rate if rate and 0 < rate <= MAX_RATE else Fraction(25)


def _frames(path: Path, container: str) -> Iterator[Pixels]:
    import av

    with reading("video"), av.open(str(path), format=container) as video:
        for index, frame in enumerate(video.decode(video=0)):
            check_pixels(frame.width, frame.height, "image")
            check_length(index + 1, frame.height, frame.width)
            yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
