"""A Unix socket's file: one that a killed server left is replaced, any other is kept; and who may connect."""

import grp
import os
import socket as socketlib
import stat
from pathlib import Path

from common.errors import SiteStateError

#: Takes the file's rights from all but the server's user and one group, from the moment it is there.
UMASK = 0o117


def remove_stale(socket: Path) -> None:
    """Remove what a server that was killed left behind.

    Binding would take over a socket that another server still listens at, without a word. No lock file says so:
    the socket's folder may be one where others can write, and only the state's own lock lies out of their reach.

    Raises:
        SiteStateError: if something else lies there, or a server listens.
    """
    try:
        if not stat.S_ISSOCK(socket.lstat().st_mode):
            raise SiteStateError(f"{socket} is not a socket. Choose another path for it; nothing was removed.")
        if listens(socket):
            raise SiteStateError(
                f"another process already listens at {socket}. Stop it first; two would answer the same messages."
            )
        socket.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SiteStateError(f"cannot replace {socket}: {error.strerror}.") from None


def give_to(socket: Path, group: str) -> None:
    """Let a group connect, beside the server's own user. Raises SiteStateError."""
    try:
        os.chown(socket, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        raise SiteStateError(f"there is no group `{group}` here. Make it, or leave --group out.") from None
    except OSError as error:
        raise SiteStateError(f"cannot give {socket} to the group `{group}`: {error.strerror}.") from None


def listens(path: Path) -> bool:
    """Return whether a process accepts connections at a socket, busy or not; after a killed one none does.

    Raises:
        OSError: if that cannot be told, such as of a file that is no socket.
    """
    with socketlib.socket(socketlib.AF_UNIX, socketlib.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:  # so many wait that no more fit
            return True
    return True
