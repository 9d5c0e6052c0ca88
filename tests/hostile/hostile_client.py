"""A ClientApp that tries what shipped code at a hospital could try; each attempt ends in one word or a list."""

import contextlib
import ctypes
import json
import os
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

_LIBC = ctypes.CDLL(None, use_errno=True)
#: Linux's flags of `unshare`.
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_MOST_PROCESSES = 700


def outcome(attempt: Callable[[], Any]) -> Any:
    """Return what an attempt brought, or the name of the error that stopped it."""
    try:
        return attempt()
    except Exception as error:
        return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"


def connect(place: tuple[str, int]) -> str:
    host, port = place
    with socket.create_connection((host, port), timeout=3):
        return "connected"


def each(attempt: Callable[[Any], Any], over: list[Any]) -> dict[str, Any]:
    """Return what an attempt brought for each of these, all at once: most wait for an answer that never comes."""
    with ThreadPoolExecutor(32) as pool:
        found = pool.map(lambda one: outcome(lambda: attempt(one)), over)
        return {
            one if isinstance(one, str) else ":".join(map(str, one)): came
            for one, came in zip(over, found, strict=True)
        }


def system(call: Callable[[], int]) -> str:
    """Return `done`, or the error of a C call that gives -1."""
    return "done" if call() != -1 else os.strerror(ctypes.get_errno())


def write(folder: str) -> str:
    path = Path(folder) / "hostile"
    path.write_text("was here")
    path.unlink()
    return "written"


def files() -> dict[str, list[str]]:
    """Return what looks like images, keys or secrets anywhere."""
    found: dict[str, list[str]] = {"images": [], "keys": []}
    for folder, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev")]
        for name in names:
            path = os.path.join(folder, name)
            installed = "-packages/" in path or path.startswith(("/usr/", "/etc/ssl/"))
            if name.endswith((".png", ".csv", ".safetensors")) and not installed:
                found["images"].append(path)
            if not installed and (name.endswith((".key", ".secret", ".pem")) or name in ("node", "secret")):
                found["keys"].append(path)
    return found


def processes() -> list[str]:
    """Return the commands of all processes that can be seen."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip())
    return found


def fork() -> int:
    """Start processes until the kernel refuses, end them all, and return how many there were."""
    children: list[subprocess.Popen[bytes]] = []
    try:
        while len(children) < _MOST_PROCESSES:
            children.append(subprocess.Popen(["sleep", "60"]))
    except OSError:
        pass
    for child in children:
        child.kill()
    for child in children:
        child.wait()
    return len(children)


def ask(socket_path: str, method: str, payload: bytes) -> str:
    """Return what the worker says to bytes that it did not expect, without what cannot be printed."""
    with grpc.insecure_channel(f"unix:{socket_path}") as channel:
        try:
            reply: bytes = channel.unary_unary(method)(payload, timeout=20)
        except grpc.RpcError as error:
            return str(error.code())
    return reply.decode("ascii", "replace")


def raw_socket() -> str:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return "opened"


def packet_socket() -> str:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    return "opened"


def become_root() -> str:
    os.setuid(0)
    return "root"


@app.query()
def attack(message: Message, context: Context) -> Message:
    """Try everything in the plan and report it."""
    plan = json.loads(str(message.content.config_records["plan"]["plan"]))
    worker = os.environ["CROSSPROBE_SOCKET"]
    found: dict[str, Any] = {
        "interfaces": [name for _, name in socket.if_nameindex()],
        "ipv6": outcome(Path("/proc/net/if_inet6").read_text),
        "connect": each(connect, plan["addresses"]),
        "names": each(lambda name: bool(socket.getaddrinfo(name, 443)), plan["names"]),
        "read": each(lambda path: Path(path).read_bytes()[:1] != b"", plan["files"]),
        "write": each(write, plan["folders"]),
        "replace_socket": outcome(lambda: os.unlink(worker)),
        "files": files(),
        "processes": processes(),
        "environment": sorted(os.environ),
        "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
        "status": Path("/proc/self/status").read_text(),
        "become_root": outcome(become_root),
        "raw_socket": outcome(raw_socket),
        "packet_socket": outcome(packet_socket),
        "mount": system(lambda: _LIBC.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None)),
        "remount": system(lambda: _LIBC.mount(None, b"/", None, 0x20, None)),
        "new_user": system(lambda: _LIBC.unshare(_NEW_USER)),
        "new_net": system(lambda: _LIBC.unshare(_NEW_NET)),
        "chroot": outcome(lambda: os.chroot("/tmp")),
        "device": outcome(lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0))),
        "junk": ask(worker, "/crossprobe.Worker/Ask", b"junk"),
        "other_method": ask(worker, "/crossprobe.Worker/Files", b""),
        "forks": fork(),
    }
    return Message(RecordDict({"found": ConfigRecord({"found": json.dumps(found)})}), reply_to=message)
