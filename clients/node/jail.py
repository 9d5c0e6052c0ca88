"""Worker and desk give up what they do not need, before they open the first image; in a container as outside of one.

What is closed stays closed for the process and all its threads, whatever a broken image or a request makes it do:

- seccomp (kernel 3.5): no socket but Unix ones; no other program; no look into other processes; no mounts, namespaces,
  kernel modules, and no io_uring, which goes round filters of system calls;
- Landlock (kernel 5.13): files are read below a few folders and written below fewer, where it listens only its socket
  is made and removed; nothing is executed;
- limits: no core file, which would hold images; no more memory than the machine has; no file without end.

By hand, with ctypes: the only Landlock package is a development version, and libseccomp's bindings are no wheel.
Sources: the kernel's Documentation/userspace-api, landlock.rst and seccomp_filter.rst; system calls' numbers from its
tables. Linux on x86-64 and arm64; elsewhere nothing is closed, and the sentence says so.
"""

import contextlib
import ctypes
import errno
import os
import platform
import resource
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

#: What a process says of itself that could close everything.
GIVEN_UP = (
    "this process gave up sockets but Unix ones, other programs, other processes' memory, and files but those of its "
    "software and what its command names"
)
#: Bytes of the largest file that a worker writes: its ledger, after many years.
LARGEST_FILE = 8 << 30
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 4, 22, 38, 2

#: Offsets in struct seccomp_data; and what a filter says.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06

#: machine -> its name in a filter, the number of `socket`, and those of all that a worker never calls.
_CALLS: dict[str, tuple[int, int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        41,
        {
            "execve": 59, "ptrace": 101, "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166, "swapon": 167,
            "reboot": 169, "init_module": 175, "delete_module": 176, "kexec_load": 246, "add_key": 248,
            "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298, "open_by_handle_at": 304,
            "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "finit_module": 313,
            "kexec_file_load": 320, "bpf": 321, "execveat": 322, "userfaultfd": 323, "io_uring_setup": 425,
            "open_tree": 428, "move_mount": 429, "fsopen": 430, "pidfd_getfd": 438,
        },
    ),
    "aarch64": (
        0xC00000B7,
        198,
        {
            "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "unshare": 97, "kexec_load": 104,
            "init_module": 105, "delete_module": 106, "ptrace": 117, "reboot": 142, "add_key": 217, "request_key": 218,
            "keyctl": 219, "execve": 221, "swapon": 224, "perf_event_open": 241, "open_by_handle_at": 265, "setns": 268,
            "process_vm_readv": 270, "process_vm_writev": 271, "finit_module": 273, "bpf": 280, "execveat": 281,
            "userfaultfd": 282, "kexec_file_load": 294, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429,
            "fsopen": 430, "pidfd_getfd": 438,
        },
    ),
}  # fmt: skip
#: Numbers of x86-64's 32-bit calling convention begin here; none is needed.
_X32 = 0x40000000

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _PATH_BENEATH = 444, 445, 446, 1
_EXECUTE, _WRITE, _READ, _LIST, _TRUNCATE, _IOCTL = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
#: A socket is made, and one that was left is removed; nothing else there is read or written.
_OF_SOCKETS = 1 << 9 | 1 << 5
#: Rights that a rule on a file, and not on a folder, may name.
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
#: version of Landlock -> the rights on files that it knows.
_KNOWN = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
#: TCP from version 4; signals to and abstract sockets of others from version 6.
_NETWORK, _SCOPED = 0b11, 0b11


def enter(*, reads: Iterable[Path], writes: Iterable[Path], listens: Iterable[Path] = ()) -> list[str]:
    """Close what the process does not need and return what could not be closed, a sentence each.

    To be called before the process has threads, which would keep what they have, and before it reads what it does not
    trust.

    Args:
        reads: folders and files that are read, besides Python, its libraries and the system's.
        writes: folders and files that are written, besides those for temporary files; what is missing is left out.
        listens: folders of the Unix sockets that it listens at.
    """
    if not sys.platform.startswith("linux"):
        return [f"this process cannot give up its rights on {sys.platform}; keep it from networks yourself"]
    libc = ctypes.CDLL(None, use_errno=True)
    left = []
    if len(os.listdir("/proc/self/task")) > 1:
        left.append("this process had threads before it gave up its rights, and these keep theirs")
    _limit(libc)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return [*left, f"this process cannot give up its rights: {os.strerror(ctypes.get_errno())}"]
    left += _landlock(libc, [*_system(), *reads], [*_temporary(), *writes], listens)
    left += _seccomp(libc)
    return left


def _limit(libc: ctypes.CDLL) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_DATA: memory, resource.RLIMIT_FSIZE: LARGEST_FILE}
    for what, most in limits.items():
        soft, hard = resource.getrlimit(what)
        top = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (top if soft == resource.RLIM_INFINITY else min(soft, top), top))
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # nobody of the same user may look into its memory


def _system() -> Iterator[Path]:
    """Yield what Python, torch and the C library read."""
    yield from map(Path, (sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/opt"))
    yield Path(__file__).resolve().parents[2]
    yield from (Path(entry) for entry in sys.path if entry)


def _temporary() -> Iterator[Path]:
    """Yield where temporary files lie, and the devices: null, random numbers, a GPU."""
    yield from map(Path, (os.environ.get("TMPDIR", "/tmp"), "/tmp", "/var/tmp", "/dev"))


def _landlock(libc: ctypes.CDLL, reads: Iterable[Path], writes: Iterable[Path], listens: Iterable[Path]) -> list[str]:
    version = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return ["the kernel has no Landlock: this process reads and writes whatever its user may"]
    handled = _KNOWN[max(known for known in _KNOWN if known <= version)]
    network = _NETWORK if version >= 4 else 0
    scoped = _SCOPED if version >= 6 else 0
    attributes = struct.pack("=QQQ", handled, network, scoped)[: 8 * (1 if version < 4 else 2 if version < 6 else 3)]
    ruleset = libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, ruleset)
        for folder in reads:
            _permit(libc, ruleset, folder, handled & (_READ | _LIST))
        for folder in writes:
            _permit(libc, ruleset, folder, handled & ~_EXECUTE)
        for folder in listens:
            _permit(libc, ruleset, folder, handled & _OF_SOCKETS)
        if libc.syscall(_RESTRICT_SELF, ruleset, 0):
            return [f"Landlock refused: {os.strerror(ctypes.get_errno())}; this process writes whatever its user may"]
    if version < 4:
        return ["this kernel's Landlock does not know networks; seccomp alone keeps this process from them"]
    return []


def _permit(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    """Permit rights below a folder, or on a file; nothing where there is none."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = struct.pack("=Qi", rights if path.is_dir() else rights & _OF_FILES, descriptor)
        if libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _seccomp(libc: ctypes.CDLL) -> list[str]:
    known = _CALLS.get(platform.machine())
    if known is None:
        return [f"no filter of system calls for {platform.machine()}: this process may open sockets and start programs"]
    instructions = filter_of(*known)
    program = _Program(len(instructions), b"".join(instructions))
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0):
        return [f"seccomp refused: {os.strerror(ctypes.get_errno())}; this process may open sockets and start programs"]
    return []


def filter_of(architecture: int, socket_call: int, refused: dict[str, int]) -> list[bytes]:
    """Return the filter's instructions, 8 bytes each: what is not named is allowed, for torch needs much."""

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    steps = [
        step(_LOAD, _ARCHITECTURE),
        step(_EQUAL, architecture, 1, 0),
        step(_RETURN, _REFUSE),
        step(_LOAD, _NUMBER),
        step(_AT_LEAST, _X32, 0, 1),
        step(_RETURN, _REFUSE),
        step(_EQUAL, socket_call, 0, 4),
        step(_LOAD, _FIRST_ARGUMENT),
        step(_EQUAL, socket.AF_UNIX, 0, 1),
        step(_RETURN, _ALLOW),
        step(_RETURN, _REFUSE),
    ]
    for number in sorted(refused.values()):
        steps += [step(_EQUAL, number, 0, 1), step(_RETURN, _REFUSE)]
    return [*steps, step(_RETURN, _ALLOW)]
