"""Where a worker runs: what it could do beyond its work if something in it went wrong, told when it starts."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import SiteStateError

#: Unix sockets, which no jail closes, of what runs as root.
ENGINES = ("/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock")


def networks() -> list[str]:
    """Return the names of this process' network interfaces but loopback's."""
    return sorted(name for _, name in socket.if_nameindex() if name != "lo")


def surroundings(folder: Path, networks: Sequence[str]) -> list[str]:
    """Return what a worker on `folder` has and does not need, a sentence each; in a container as shipped, nothing.

    Args:
        networks: that it can reach.
    """
    found = []
    if networks:
        found.append(
            f"this process has a network ({', '.join(networks)}) and needs none: what reads the images could also send "
            "them. Run it as docker-compose.yml does, or in a network namespace of its own (`unshare -n`)"
        )
    if os.geteuid() == 0:
        found.append(
            "it runs as root, and may do what it did not give up to all of this machine. Run it as a user of its own"
        )
    found += [
        f"it may talk to the container engine at {engine}, which starts whatever it is told to. Take the right away"
        for engine in ENGINES
        if os.access(engine, os.W_OK)
    ]
    if _writable(folder):
        found.append(f"it can write to {folder}, and only needs to read it. Mount it read-only, or take the right away")
    return found


def _writable(folder: Path) -> bool:
    """Whether a file could be made in a folder; none is. `os.access` does not know what Landlock took away."""
    if not os.access(folder, os.W_OK):
        return False
    try:
        os.close(os.open(folder, os.O_WRONLY | getattr(os, "O_TMPFILE", 0), 0o600))
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM)  # others: no such files here
    return True


@contextlib.contextmanager
def alone_on(folder: Path) -> Iterator[str]:
    """Hold a site's folder for as long as the block runs: a second state folder would spend a second privacy budget.

    The lock lies on site.yaml itself: it needs no right to write, and holds across containers of one machine. Gives a
    sentence where the file system has no locks, else an empty text.

    Raises:
        SiteStateError: if another worker is at work on the folder, or site.yaml cannot be read.
    """
    try:
        descriptor = os.open(folder / "site.yaml", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SiteStateError(f"cannot read {folder / 'site.yaml'}: {error.strerror}.") from None
    with contextlib.closing(os.fdopen(descriptor, "rb")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            without = ""
        except BlockingIOError:
            raise SiteStateError(
                f"another worker, with a state folder of its own, is at work on {folder}. Stop one of them: the same "
                "patients would be counted in two privacy budgets."
            ) from None
        except OSError:
            without = f"nothing tells whether another worker is at work on {folder}: its file system has no locks"
        yield without
