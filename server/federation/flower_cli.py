"""The `flwr` command as a child process with a home of its own: submit a run, follow it, stop it.

Used for the simulation and for a federation between hospitals. `flwr run --stream` would exit 0 when the
ServerApp crashed; here the run's status decides, and the ServerApp's own message is the error.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import RunError
from common.run_folder import RunFolder

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

#: The folder with pyproject.toml, which Flower bundles as the app.
APP = Path(__file__).resolve().parents[2]
#: The one connection in a home's config.toml.
_LINK = "coordinator"
_POLL_S = 1.0
#: For so long a SuperLink may give no answer about a run: it is away for half a minute when it is restarted, for longer
#: when its machine is.
_STATUS_PATIENCE_S = 300.0
COMPLETED = "finished:completed"
#: One of our errors in Flower's log: where the disk is full, the ServerApp can leave no message in the run's folder.
_LOGGED_ERROR = re.compile(r"common\.errors\.\w+: (.+)")


def copy_app(app: Path, to: Path) -> None:
    """Copy what Flower bundles of an app into an empty folder: what its pyproject.toml includes, no links, .gitignore.

    Flower looks at every file below an app's folder, here also at those of a virtual environment and of every run. That
    takes it seconds. What .gitignore names, it leaves out of the copy as it does of the whole.
    """
    settings = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    for pattern in ("pyproject.toml", ".gitignore", *settings["tool"]["flwr"]["app"]["fab-include"]):
        for file in app.glob(pattern):
            if file.resolve() != app.resolve() / file.relative_to(app) or not file.is_file():
                continue
            copy = to / file.relative_to(app)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


class UnknownRun(RunError):
    """A SuperLink was asked for a run that it never had."""


@dataclass(frozen=True)
class Node:
    """A registered SuperNode: Flower's id of it, the name of its site, and whether it is connected now."""

    node_id: str
    name: str
    online: bool


def tool(name: str) -> str:
    """Return a program of the environment that runs us, whatever PATH says; PATH's only where we have none.

    Not every Python keeps its scripts beside the interpreter: Debian's has them in /usr/local/bin.

    Raises:
        RunError: if there is no such program.
    """
    own = os.pathsep.join((sysconfig.get_path("scripts"), str(Path(sys.executable).parent)))
    found = shutil.which(name, path=own) or shutil.which(name)
    if found is None:
        raise RunError(
            f"expected the program `{name}` in {own} or on PATH, found none. Install CrossProbe with pip again."
        )
    return found


def flower_environment(home: Path) -> dict[str, str]:
    """Return the environment for Flower's programs: nothing is reported, looked up or installed at run time."""
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": str(Path(tool("flwr")).parent) + os.pathsep + os.environ.get("PATH", ""),
    }


class FlowerCli:
    """`flwr` against one SuperLink.

    Args:
        address: host:port of the SuperLink.
        ca: certificate of the authority behind it, or None for a loopback one without TLS.
        home: existing folder for config.toml; default: a temporary one.
    """

    def __init__(self, address: str, ca: Path | None, home: Path | None = None) -> None:
        self.address, self.ca = address, ca
        self._temporary = None if home else tempfile.TemporaryDirectory(prefix="crossprobe-flwr-")
        self.home = home or Path(self._temporary.name if self._temporary else "")
        # JSON's strings are TOML's basic strings.
        trust = f"root-certificates = {json.dumps(str(ca.resolve()))}" if ca else "insecure = true"
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_LINK}"\n\n[superlink.{_LINK}]\naddress = {json.dumps(address)}\n{trust}\n'
        )
        self.environment = flower_environment(self.home)

    def call(self, *arguments: str) -> dict[str, Any]:
        """Run `flwr ARGUMENTS --format json` and return its answer, also one that says it failed.

        Raises:
            RunError: if there is no answer.
        """
        done = subprocess.run(
            [tool("flwr"), *arguments, "--format", "json"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            content = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            raise RunError(f"`flwr {arguments[0]}` failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}") from None
        return content if isinstance(content, dict) else {}

    def submit(self, config: Mapping[str, str | bool | int], *, federation: str = "", app: Path = APP) -> str:
        """Bundle an app, start a run of it, and return the run's id.

        Raises:
            RunError: if the SuperLink does not accept it.
        """
        # JSON's strings and booleans are TOML's.
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        more = ("--federation-config", federation) if federation else ()
        with tempfile.TemporaryDirectory(prefix="crossprobe-app-") as copy:
            copy_app(app, Path(copy))
            answer = self.call("run", copy, _LINK, "--run-config", pairs, *more)
        if not answer.get("success") or answer.get("run-id") is None:
            raise RunError(f"Flower did not accept the run: {self._why(answer)}")
        return str(answer["run-id"])

    def status(self, run_id: str) -> str:
        """Return a run's status, `finished:completed` if all went well.

        Raises:
            UnknownRun: if the SuperLink never had that run.
            RunError: if it does not answer.
        """
        import httpx
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._control() as control:
            try:
                (run,) = control.ListRuns(ListRunsRequest(run_id=int(run_id))).run_dict.values()
            except httpx.HTTPStatusError as error:
                if error.response.status_code != HTTPStatus.NOT_FOUND:
                    raise
                raise UnknownRun(
                    f"the SuperLink at {self.address} does not know run {run_id}: it is another one than the run was "
                    "started at, or lost its database. Everything up to the last round is saved in the run's folder; "
                    "start again with --resume."
                ) from None
        return f"{run.status.status}:{run.status.sub_status}".rstrip(":")

    def stop(self, run_id: str) -> None:
        """Stop a run. Raises RunError if it goes on."""
        answer = self.call("stop", run_id, _LINK)
        if not answer.get("success") and not self.status(run_id).startswith("finished"):
            raise RunError(f"cannot stop run {run_id}: {self._why(answer)}")

    def nodes(self) -> list[Node]:
        """Return all registered SuperNodes. Raises RunError."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._control() as control:
            nodes = control.ListNodes(ListNodesRequest()).nodes_info
        return [
            Node(str(node.node_id), node.name, node.status == "online")
            for node in nodes
            if node.status != "unregistered"
        ]

    def register(self, name: str, public_key: Path) -> str:
        """Bind a site's name to its public key and return its node id. Raises RunError."""
        answer = self.call("supernode", "register", str(public_key), _LINK, "--name", name)
        if not answer.get("success"):
            raise RunError(f"{name} was not registered: {self._why(answer)}")
        return str(answer["node-id"])

    def error_in_log(self, run_id: str) -> str:
        """Return the message of the error that ended a run's ServerApp, as Flower logged it, or an empty text."""
        done = subprocess.run(
            [tool("flwr"), "log", run_id, _LINK, "--show"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        found = _LOGGED_ERROR.findall(done.stdout)
        return found[-1] if found else ""

    @contextmanager
    def _control(self) -> Iterator["ControlHttpClient"]:
        """Ask the SuperLink from this process: each `flwr` is a process of its own that takes a core for a second.

        Raises:
            RunError: if it does not answer in the block.
        """
        import httpx
        from flwr.supercore.control import ControlHttpClient

        try:
            ca = self.ca.read_bytes() if self.ca else None
            client = ControlHttpClient.from_server_address(self.address, self.ca is None, ca, ())
            try:
                yield client
            finally:
                client.close()
        except httpx.HTTPStatusError as error:
            raise RunError(
                f"the SuperLink at {self.address} answers with HTTP {error.response.status_code}: it does not know "
                "what it was asked for, or something else answers there."
            ) from None
        except (httpx.HTTPError, OSError) as error:
            raise RunError(self._why({"error-message": f"The SuperLink is unavailable ({error})."})) from None

    def unregister(self, name: str) -> list[str]:
        """Take a name from every key that has it, and return their node ids; none of them may connect any more.

        Raises:
            RunError: if no key has the name, or the SuperLink keeps one.
        """
        registered = self.nodes()
        nodes = [node.node_id for node in registered if node.name == name]
        if not nodes:
            known = ", ".join(sorted({node.name for node in registered})) or "none"
            raise RunError(f"no key is registered as {name}, so there is nothing to take back. Registered: {known}.")
        for node in nodes:
            answer = self.call("supernode", "unregister", node, _LINK)
            if not answer.get("success"):
                raise RunError(f"{name} is still registered as node {node}: {self._why(answer)}")
        return nodes

    def _why(self, answer: dict[str, Any]) -> str:
        """Return Flower's reason, and what to do where it is known."""
        text = str(answer.get("error-message", answer))
        # The first line only repeats the connection's name.
        reason = " ".join(line for line in text.splitlines() if line and not line.startswith("Using SuperLink"))
        if "already in use" in reason:
            return f"{reason} This key has its site already, or was barred; the site makes a new one with keygen."
        if "unavailable" in reason:
            return (
                f"nobody who is certified by {self.ca} answers at {self.address}. Check that the SuperLink runs "
                "(docker compose ps), that its certificate has not expired (openssl x509 -enddate -noout -in "
                "server.crt), and that --ca is the ca.crt made with it."
            )
        return reason

    def follow(
        self,
        run_id: str,
        out: Path,
        on_poll: Callable[[], None] = lambda: None,
        log_tail: Callable[[], str] = lambda: "",
    ) -> None:
        """Wait for a run's end.

        Args:
            out: the run's folder, for the ServerApp's own message.
            on_poll: is called about once a second; what it raises ends the waiting, not the run.
            log_tail: returns what else there is to read where the ServerApp left no message.

        Raises:
            RunError: with the ServerApp's own message if the run failed, or if the SuperLink stays away.
        """
        answered = time.monotonic()
        while True:
            time.sleep(_POLL_S)
            on_poll()
            try:
                status, answered = self.status(run_id), time.monotonic()
            except RunError as error:
                if time.monotonic() - answered > _STATUS_PATIENCE_S:
                    raise RunError(
                        f"{error}\nThe run may well go on without this command, and everything up to the last round is "
                        "saved: once the SuperLink answers again, start again with --resume."
                    ) from None
                continue
            if status == COMPLETED:
                on_poll()
                return
            if status.startswith("finished"):
                message = RunFolder(out).error
                raise RunError(
                    message.read_text()
                    if message.exists() and message.stat().st_size
                    else self.error_in_log(run_id)
                    or f"Flower reports `{status}`, and the ServerApp left no message: it was stopped or killed. "
                    f"Everything up to the last round is saved; start again with --resume.\n{log_tail()}".strip()
                )
