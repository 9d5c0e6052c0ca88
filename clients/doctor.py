"""`crossprobe doctor`: what this machine has and lacks for its part, and how to mend it. Changes nothing."""

import errno
import http.client
import os
import platform
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal

from cryptography import x509
from packaging.specifiers import SpecifierSet

#: `mend` stands in the way of a study; `note` is good to know.
Level = Literal["ok", "note", "mend"]

GIB = 2**30
#: Below the first of a pair a study fails, below the second it is tight. All 13 processes of a rehearsal took 1.4 GiB
#: together (the sum of `Pss` in /proc/PID/smaps_rollup); a run's folder holds a checkpoint and a model.
MEMORY_GIB, DISK_GIB = (1.0, 2.0), (1.0, 5.0)
#: Flower's SuperLink refuses a node whose clock is further ahead than this.
CLOCK_S = 5.0
#: A study may last weeks; a certificate that ends in it stops it.
CERTIFICATE_DAYS = 30
ANSWER_S = 5.0


@dataclass(frozen=True)
class Check:
    """One line of the table: what was looked at, what was found, and what to do unless all is well."""

    check: str
    level: Level
    found: str
    fix: str = ""


def examine(
    folder: Path,
    *,
    state: Path | None = None,
    certificates: Sequence[Path] = (),
    ports: Sequence[int] = (),
    address: tuple[str, int] | None = None,
    ca: Path | None = None,
) -> list[Check]:
    """Return all checks, in the order of the table.

    Args:
        folder: where runs are written.
        state: a site's or a node's state folder.
        certificates: PEM files whose end is looked at.
        ports: those that this machine is to listen at.
        address: host and port of the coordinator, which certifies itself by `ca`.
    """
    checks = [_python(), _torch(), _gpu(), _cores(), _memory(), _disk(folder), _docker()]
    checks += [_port(port) for port in ports]
    checks += [_state(state)] if state else []
    checks += [_certificate(file) for file in (*certificates, *([ca] if ca else []))]
    return [*checks, *(_coordinator(*address, ca) if address else [_clock()])]


def _python() -> Check:
    found = platform.python_version()
    try:
        wanted = metadata("crossprobe")["Requires-Python"]
    except PackageNotFoundError:
        return Check("python", "mend", f"{found}, without an installed CrossProbe", "make install")
    if not SpecifierSet(wanted).contains(found):
        return Check("python", "mend", f"{found}, expected {wanted}", f"install Python {wanted}, then: make install")
    return Check("python", "ok", found)


def _torch() -> Check:
    try:
        found = version("torch")
        wanted = next(line for line in requires("crossprobe") or [] if line.startswith("torch=="))
    except PackageNotFoundError:
        return Check("torch", "mend", "not installed", "make install")
    except StopIteration:
        return Check("torch", "ok", found)
    expected = wanted.removeprefix("torch==").partition(";")[0].strip()
    if found.partition("+")[0] != expected:
        return Check("torch", "mend", f"{found}, expected {expected}", "make install")
    try:
        import torch

        torch.zeros(1).sum()
    except (ImportError, OSError, RuntimeError) as error:
        return Check("torch", "mend", f"{found}, does not load: {str(error).splitlines()[0]}", "make install")
    return Check("torch", "ok", found)


def _gpu() -> Check:
    try:
        import torch

        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except (ImportError, OSError, RuntimeError):
        names = []
    if names:
        return Check("GPU", "ok", ", ".join(names))
    if shutil.which("nvidia-smi"):
        return Check("GPU", "note", "there may be one that torch does not see", "make install TORCH_INDEX=CUDA-INDEX")
    return Check("GPU", "note", "none", "all computes on the CPU; none is needed for the demo or a small study")


def _cores() -> Check:
    found = len(os.sched_getaffinity(0))
    if found < 2:
        return Check("cores", "note", str(found), "a run takes about twice as long as on two")
    return Check("cores", "ok", str(found))


def _memory() -> Check:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 2**20
        limit = _cgroup_limit()
    except (OSError, StopIteration, ValueError):
        return Check("memory", "note", "not told by this system", "at least 2 GiB should be free")
    return _room("memory", min(free, limit), MEMORY_GIB, "end other programs, or give the container more")


def _cgroup_limit() -> float:
    """Return what a container may take, in GiB; infinite outside of one."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return float("inf")
    return float("inf") if text == "max" else (int(text) - int(used)) / GIB


def _disk(folder: Path) -> Check:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Check("disk", "mend", f"{there} cannot be written", "choose another folder, or change its rights")
    return _room("disk", shutil.disk_usage(there).free / GIB, DISK_GIB, f"make room where {there} lies")


def _room(check: str, free: float, limits: tuple[float, float], fix: str) -> Check:
    level: Level = "mend" if free < limits[0] else "note" if free < limits[1] else "ok"
    return Check(check, level, f"{free:.1f} GiB free", "" if level == "ok" else fix)


def _docker() -> Check:
    if not shutil.which("docker"):
        return Check("Docker", "note", "not installed", "only the containers need it, see docs/coordinator.md")
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Check("Docker", "note", "does not answer", "for the containers: start its service, then: docker version")
    if done.returncode:
        fix = "for the containers: start its service, or put this user into the group `docker`"
        return Check("Docker", "note", (done.stderr.strip().splitlines() or ["no answer"])[-1], fix)
    return Check("Docker", "ok", done.stdout.strip())


def _port(port: int) -> Check:
    name = f"port {port}"
    try:
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, after one that just ended
            s.bind(("", port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Check(name, "note", "somebody listens there", "good if it is the coordinator's own proxy")
        return Check(name, "mend", f"cannot be used: {error.strerror}", "choose another: crossprobe provision --port")
    return Check(name, "ok", "free")


def _state(folder: Path) -> Check:
    name = f"state folder {folder}"
    try:
        if not folder.is_dir():
            fix = f"crossprobe site init --state {folder}; a node's: crossprobe site keygen --state {folder}"
            return Check(name, "mend", "not there", fix)
        files = [path.lstat() for path in (folder, *folder.rglob("*")) if path.suffix not in (".pub", ".crt")]
    except OSError as error:
        return Check(name, "mend", f"cannot be read: {error.strerror}", "run as the user who made it")
    counts = {
        "of another user": sum(file.st_uid != os.geteuid() for file in files),
        "that others can read": sum(stat.S_ISREG(file.st_mode) and bool(file.st_mode & 0o077) for file in files),
        "that others can write into": sum(stat.S_ISDIR(file.st_mode) and bool(file.st_mode & 0o022) for file in files),
    }
    if not any(counts.values()):
        return Check(name, "ok", "for this user only")
    fix = "run as the user who made it, the worker's" if counts["of another user"] else f"chmod -R go-rwx {folder}"
    return Check(name, "mend", ", ".join(f"{count} {what}" for what, count in counts.items() if count), fix)


def _certificate(file: Path) -> Check:
    try:
        end = x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no PEM certificate"
        return Check(f"certificate {file}", "mend", f"cannot be read: {reason}", "take the one of your kit")
    return _end(f"certificate {file}", end)


def _end(name: str, end: datetime) -> Check:
    days = (end - datetime.now(UTC)).days
    found = f"ended on {end:%Y-%m-%d}" if days < 0 else f"ends on {end:%Y-%m-%d}, in {days} days"
    if days < CERTIFICATE_DAYS:
        return Check(name, "mend", found, "the coordinator: crossprobe provision --out kits --renew")
    return Check(name, "ok", found)


def _clock() -> Check:
    try:
        command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        done = None
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    if done is not None and done.stdout.strip() == "yes":
        return Check("clock", "ok", f"{now}, kept by a time server")
    return Check("clock", "note", f"{now}, not compared", "compare it with the coordinator's: give --address and --ca")


def _coordinator(host: str, port: int, ca: Path | None) -> Iterator[Check]:
    """Reach the coordinator as a SuperNode does: name, port, certificate; and compare its clock with this one."""
    name = f"coordinator {host}:{port}"
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError):
        yield Check(name, "mend", f"{ca} cannot be read as a certificate", "take the ca.crt of your kit")
        return
    connection = http.client.HTTPSConnection(host, port, timeout=ANSWER_S, context=context)
    try:
        connection.connect()
        end = connection.sock.getpeercert()["notAfter"]  # type: ignore[index]
        yield Check(name, "ok", "answers, and is certified by your kit's ca.crt")
        seconds = ssl.cert_time_to_seconds(str(end))
        yield _end("the coordinator's certificate", datetime.fromtimestamp(seconds, UTC))
        connection.request("HEAD", "/")
        date = connection.getresponse().getheader("Date", "")
    except socket.gaierror:
        yield Check(name, "mend", "no such name", "check the address for a typing error, and this machine's DNS")
        return
    except ssl.SSLCertVerificationError as error:
        fix = "take the ca.crt of your kit and the address in its .env; it may also have ended: --renew"
        yield Check(name, "mend", f"not certified: {error.verify_message}", fix)
        return
    except TimeoutError:
        yield Check(name, "mend", f"no answer within {ANSWER_S:.0f} s", "ask for a way out through the firewall")
        return
    except (OSError, http.client.HTTPException) as error:
        fix = "the coordinator: docker compose ps; here: is a proxy or a firewall in between?"
        yield Check(name, "mend", f"refused: {getattr(error, 'strerror', None) or error}", fix)
        return
    finally:
        connection.close()
    yield _skew(date or "")


def _skew(date: str) -> Check:
    try:
        ahead = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    except (TypeError, ValueError):
        return Check("clock", "note", "the coordinator tells no time", "let a time server keep both clocks")
    if abs(ahead) > CLOCK_S:
        side = "ahead of" if ahead > 0 else "behind"
        found = f"{abs(ahead):.0f} s {side} the coordinator's"
        return Check("clock", "mend", found, "let a time server keep both clocks")
    return Check("clock", "ok", f"within {CLOCK_S:.0f} s of the coordinator's")
