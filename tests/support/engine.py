"""A container engine for tests: the one that answers here, else one of our own in a folder of its own.

`python tests/support/engine.py` says whether the container test can run here, and what it would use: exit code 0 or 1.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: The image that the Dockerfile builds upon, and the proxy's; taken where a registry answers.
PYTHON_IMAGE = re.findall(r"^ARG BASE=(.*)$", (ROOT / "Dockerfile").read_text(), flags=re.M)[0]
PROXY_IMAGE = re.findall(r"CROSSPROBE_PROXY_IMAGE:-(.*)}", (ROOT / "docker-compose.yml").read_text())[0]
#: What stands in for them, made of Debian's packages.
OWN_BASE, OWN_PROXY = "crossprobe-test-base:bookworm", "crossprobe-test-proxy:bookworm"
NEEDED = ("dockerd", "docker", "docker-compose", "debootstrap", "unshare")
#: A folder that keeps an engine of our own with its images between runs, for who works on the test itself.
KEPT = "CROSSPROBE_TEST_ENGINE"
READY_S = 60.0


def engine_here() -> str:
    """Return the address of an engine that answers with a compose command beside it, or an empty text."""
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if shutil.which("docker") is None:
        return ""
    asked = subprocess.run(["docker", "-H", address, "version"], capture_output=True, check=False)
    return address if asked.returncode == 0 and _has_compose() else ""


def missing() -> str:
    """Return what there is not for the container test to run here, or an empty text."""
    if engine_here():
        return ""
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    if lacking:
        return f"no engine answers, and to start one {', '.join(lacking)} is not installed"
    if os.getuid():
        return "no engine answers, and only root can start one"
    return ""


def _has_compose() -> bool:
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    return plugin or shutil.which("docker-compose") is not None


class Engine:
    """An engine and the environment for commands on it.

    Args:
        root: folder for all that is ours: the engine's state if we start it, programs, the base's files.
        address: of a running engine; empty starts one.
    """

    def __init__(self, root: Path, address: str = "") -> None:
        self.root, self.own = root, not address
        self.address = address or f"unix://{root / 'docker.sock'}"
        self._process: subprocess.Popen[bytes] | None = None
        root.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {"DOCKER_HOST": self.address, "PATH": self._programs()}
        if subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode:
            self.environment["DOCKER_BUILDKIT"] = "0"

    def _programs(self) -> str:
        """Return PATH, with a `docker compose` in front where only docker-compose 1 is installed."""
        path = os.environ["PATH"]
        if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
            return path
        folder = self.root / "bin"
        folder.mkdir(exist_ok=True)
        script = Path(__file__).with_name("compose_v1.py")
        real = shutil.which("docker")
        (folder / "docker").write_text(f'#!/bin/sh\nCROSSPROBE_DOCKER={real} exec {sys.executable} {script} "$@"\n')
        (folder / "docker").chmod(0o755)
        return f"{folder}{os.pathsep}{path}"

    def start(self, resolver: str = "") -> None:
        """Start our engine and wait until it answers.

        Args:
            resolver: address that the engine finds as the machine's name server, in a view of /etc of its own.
        """
        if not self.own:
            return
        command = ["dockerd", "--storage-driver=overlay2", f"--data-root={self.root / 'data'}"]
        command += [f"--exec-root={self.root / 'exec'}", f"--pidfile={self.root / 'docker.pid'}", f"-H={self.address}"]
        if resolver:
            file = self.root / "resolv.conf"
            file.write_text(f"nameserver {resolver}\n")
            there = Path("/etc/resolv.conf").resolve()
            command = ["unshare", "-m", "sh", "-c", f'mount --bind {file} {there} && exec "$@"', "sh", *command]
        with open(self.root / "dockerd.log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        deadline = time.monotonic() + READY_S
        while self.docker("version", check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"dockerd did not start:\n{(self.root / 'dockerd.log').read_text()[-3000:]}")
            time.sleep(0.5)

    def stop(self) -> None:
        """Stop our engine, with the containers that run on it."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=120)
        self._process = None

    def docker(self, *arguments: str, check: bool = True, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a command of `docker`."""
        done = subprocess.run(
            ["docker", *arguments],
            env=self.environment,
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            **how,
        )
        assert not check or done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout[-3000:]}{done.stderr}"
        return done

    def gateway(self, network: str = "bridge") -> str:
        """Return the machine's address in a network, or an empty text."""
        template = "{{range .IPAM.Config}}{{.Gateway}}{{end}}"
        told = self.docker("network", "inspect", "-f", template, network).stdout.strip()
        if told or network != "bridge":
            return told
        # An engine that made the default bridge itself does not tell before its next start.
        shown = subprocess.run(
            ["ip", "-4", "-o", "addr", "show", "docker0"], capture_output=True, text=True, check=False
        )
        found = re.search(r"inet ([\d.]+)/", shown.stdout)
        return found.group(1) if found else ""

    def torch_index(self) -> str:
        """Return the index for torch that builds are given: this machine's own wheels, or empty for pip's default."""
        return f"http://{self.gateway()}:{_WHEELS_PORT}/" if _wheels() else ""

    def base_images(self) -> tuple[str, str]:
        """Return the images to build upon and for the proxy: the documents' own, else of Debian's packages."""
        if all(
            self.docker("pull", "--quiet", image, check=False).returncode == 0 for image in (PYTHON_IMAGE, PROXY_IMAGE)
        ):
            return PYTHON_IMAGE, PROXY_IMAGE
        if self.docker("image", "inspect", OWN_PROXY, check=False).returncode:
            files = self.root / "rootfs"
            _debian(files, "python3,python3-pip,ca-certificates", _pip_conf(self.gateway()))
            self._import(files, OWN_BASE)
            _debian(files, "nginx-light,netcat-openbsd", "")
            self._import(files, OWN_PROXY)
        return OWN_BASE, OWN_PROXY

    def _import(self, files: Path, name: str) -> None:
        path = "ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        script = f'tar -C "{files}" -c . | docker import -c "{path}" - {name}'
        subprocess.run(["sh", "-c", script], env=self.environment, check=True, capture_output=True)
        shutil.rmtree(files)


def _debian(files: Path, packages: str, pip_conf: str) -> None:
    """Write Debian with some packages, without what no program reads, and with this machine's certificates."""
    shutil.rmtree(files, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for unread in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(files / unread, ignore_errors=True)
    if pip_conf:
        (files / "usr/bin/python").symlink_to("python3")
        for marker in files.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        shutil.copyfile("/etc/ssl/certs/ca-certificates.crt", files / "etc/ssl/certs/ca-certificates.crt")
        (files / "etc/pip.conf").write_text(pip_conf)


def _pip_config() -> dict[str, str]:
    """Return pip's settings on this machine."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    pairs = [line.partition("=") for line in done.stdout.splitlines()]
    return {key.rpartition(".")[2]: value.strip("'\"") for key, _, value in pairs}


def _wheels() -> list[Path]:
    """Return this machine's own wheels, which pip takes before an index's."""
    folders = [Path(place) for place in _pip_config().get("find-links", "").split()]
    return [wheel for folder in folders if folder.is_dir() for wheel in folder.glob("*.whl")]


#: Where they are served to containers while images are built.
_WHEELS_PORT = 18765


def _pip_conf(gateway: str) -> str:
    """Return pip's settings for containers: the machine's index and certificates, its wheels over HTTP."""
    found = _pip_config()
    lines = ["[global]", "cert = /etc/ssl/certs/ca-certificates.crt"]
    lines += [f"index-url = {found['index-url']}"] if "index-url" in found else []
    if _wheels():
        lines += [f"find-links = http://{gateway}:{_WHEELS_PORT}/", f"trusted-host = {gateway}"]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def serving_wheels(engine: Engine) -> Iterator[None]:
    """Serve this machine's own wheels to containers for as long as the block runs."""
    if not _wheels():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="crossprobe-wheels-") as folder:
        for wheel in _wheels():
            (Path(folder) / wheel.name).symlink_to(wheel)
        with serving((engine.gateway(), _WHEELS_PORT), partial(_Quiet, directory=folder)):
            yield


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(place: tuple[str, int], handler: Any) -> Iterator[int]:
    """Answer HTTP at an address for as long as the block runs; give the port."""
    with ThreadingHTTPServer(place, handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """Give an engine, and take away what was started and made for it."""
    address, kept = engine_here(), os.environ.get(KEPT, "")
    with contextlib.ExitStack() as stack:
        # not /tmp: it may lie in memory, and an overlay needs a disk
        root = Path(
            kept or stack.enter_context(tempfile.TemporaryDirectory(prefix="crossprobe-engine-", dir="/var/tmp"))
        )
        found = Engine(root, address)
        stack.callback(found.stop)
        found.start()
        yield found


def main() -> int:
    """Say whether the container test can run here."""
    lacking = missing()
    print(lacking or (f"an engine answers at {engine_here()}" if engine_here() else "an engine can be started here"))
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
