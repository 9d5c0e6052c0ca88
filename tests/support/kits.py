"""The kits' README.md, walked word for word, and looks into the containers that come of it."""

import json
import os
import re
import subprocess
import tempfile
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import Engine

#: A numbered step of a README with all that belongs to it.
STEP = re.compile(r"^(\d+)\. (.*?)(?=^\d+\. |^\S|\Z)", re.M | re.S)
#: Bits of /proc/PID/status: all capabilities gone; no new privileges; system calls filtered.
CONFINED = {
    "CapInh": "0",
    "CapPrm": "0",
    "CapEff": "0",
    "CapBnd": "0",
    "CapAmb": "0",
    "NoNewPrivs": "1",
    "Seccomp": "2",
}


def steps(readme: str) -> dict[int, str]:
    """Return the shell commands of each numbered step."""
    found = {}
    for number, text in STEP.findall(readme):
        blocks = re.findall(r"^( *)```sh\n(.*?)^ *```", text, re.M | re.S)
        found[int(number)] = "".join(textwrap.dedent(block) for _, block in blocks)
    return {number: commands for number, commands in found.items() if commands}


def under(readme: str, heading: str) -> str:
    """Return the first block of shell commands after a bold heading."""
    found = re.search(rf"^\*\*{re.escape(heading)}.*?^```sh\n(.*?)^```", readme, re.M | re.S)
    assert found, f"no commands under {heading}"
    return found.group(1)


#: What `crossprobe site approve` asks.
PROMPT = b"Type `yes`"


@dataclass
class Inside:
    """What a running container shows of itself.

    Attributes:
        status: /proc/1/status, key -> value.
        mounts: path -> mount options.
        interfaces: names of network interfaces.
        environment: names of the first process's variables.
    """

    status: dict[str, str]
    mounts: dict[str, set[str]]
    interfaces: set[str]
    environment: set[str] = field(default_factory=set)

    @property
    def confined(self) -> dict[str, str]:
        """Of `CONFINED` what is so, hexadecimal zeros shortened."""
        return {key: self.status[key].lstrip("0") or "0" for key in CONFINED}

    def writable(self) -> set[str]:
        """Return every mounted path that can be written and is no view of the kernel."""
        kernel = ("/proc", "/sys", "/dev")
        return {path for path, options in self.mounts.items() if "rw" in options and not path.startswith(kernel)}


@dataclass
class Kit:
    """A kit's folder and the machine it is on.

    Args:
        project: name of its compose project; the README's folder would give it on a machine of its own.
        desk_port: of the loopback, for the desk; several hospitals share this machine.
    """

    engine: Engine
    folder: Path
    project: str
    checkout: Path
    base: str
    proxy: str
    desk_port: int = 8600

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "SITE_DESK_PORT": str(self.desk_port),
            "COMPOSE_PROJECT_NAME": self.project,
            "CROSSPROBE_PROXY_IMAGE": self.proxy,
            "COMPOSE_HTTP_TIMEOUT": "300",
        }
        return self.engine.environment | own

    def commands(self, step: int) -> str:
        """Return a step's commands, with this machine's checkout, base image and torch."""
        text = steps((self.folder / "README.md").read_text())[step]
        return text.replace("CHECKOUT", str(self.checkout)).replace(
            "docker build ",
            f"docker build --build-arg BASE={self.base} --build-arg TORCH_INDEX={self.engine.torch_index()} ",
        )

    def do(self, step: int, *, answer: str = "", check: bool = True, changes: tuple[str, str] = ("", "")) -> str:
        """Carry out a step as it stands and return what it said.

        Args:
            answer: typed into it.
            changes: a text of the step, and what stands there instead.
        """
        done = self.start(step, answer=answer, changes=changes)
        said = done.stdout + done.stderr
        assert not check or done.returncode == 0, (
            f"{self.name}, step {step}: exit code {done.returncode}\n{said[-4000:]}"
        )
        assert check or done.returncode != 0, f"{self.name}, step {step} should have failed\n{said[-4000:]}"
        return said

    def start(
        self, step: int, *, answer: str = "", changes: tuple[str, str] = ("", "")
    ) -> subprocess.CompletedProcess[str]:
        """Carry out a step and return its end."""
        print(f"{time.strftime('%H:%M:%S')} {self.name}, step {step}", flush=True)  # with `-s`: it takes a while
        commands = self.commands(step)
        assert changes[0] in commands
        script = commands.replace(*changes) if changes[0] else commands
        command = ["bash", "-e", "-c", script]
        if answer:
            return self._at_a_terminal(command, answer)
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )

    def _at_a_terminal(self, command: list[str], answer: str) -> subprocess.CompletedProcess[str]:
        """Run a command at a terminal and type the answer once it asks for `yes`."""
        keyboard, terminal = os.openpty()
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdin=terminal, stdout=said, stderr=said
            )
            os.close(terminal)
            asked = False
            while process.poll() is None:
                if not asked and PROMPT in os.pread(said.fileno(), 2**20, 0):
                    os.write(keyboard, answer.encode())
                    asked = True
                time.sleep(0.2)
            os.close(keyboard)
            return subprocess.CompletedProcess(
                command, process.returncode, os.pread(said.fileno(), 2**20, 0).decode(), ""
            )

    def background(self, commands: str, log: Path) -> subprocess.Popen[bytes]:
        """Start commands of the README and return without waiting."""
        with open(log, "wb") as file:
            return subprocess.Popen(
                ["bash", "-e", "-c", commands],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def compose(self, *arguments: str) -> str:
        """Run `docker compose` in the kit's folder."""
        done = subprocess.run(
            ["docker", "compose", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{self.name}: docker compose {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def container(self, service: str) -> str:
        """Return the id of a service's container."""
        labels = {"project": self.project, "service": service, "oneoff": "False"}
        filters = [f"--filter=label=com.docker.compose.{key}={value}" for key, value in labels.items()]
        (found,) = self.engine.docker("ps", "-aq", *filters).stdout.split()
        return found

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine knows of a service's container."""
        content: list[dict[str, Any]] = json.loads(self.engine.docker("inspect", self.container(service)).stdout)
        return content[0]

    def healthy(self, *services: str) -> bool:
        """Whether all of these services are healthy."""
        return all(self.inspect(service)["State"].get("Health", {}).get("Status") == "healthy" for service in services)

    def run_in(self, service: str, *command: str) -> str:
        """Run a command in a service's container, as its user."""
        return self.engine.docker("exec", self.container(service), *command).stdout

    def inside(self, service: str) -> Inside:
        """Look around in a running container."""
        files = [self.run_in(service, "cat", f"/proc/{name}") for name in ("1/status", "mounts", "net/dev")]
        mounts = [line.split() for line in files[1].splitlines()]
        return Inside(
            status={key: value.strip() for key, _, value in (line.partition(":") for line in files[0].splitlines())},
            mounts={path: set(options.split(",")) for _, path, _, options, *_ in mounts},
            interfaces={line.partition(":")[0].strip() for line in files[2].splitlines()[2:]},
            environment={each.partition("=")[0] for each in self.run_in(service, "cat", "/proc/1/environ").split("\0")},
        )


def confined(inside: Inside) -> None:
    """Assert that a container has no right that it does not need."""
    assert inside.confined == CONFINED
    assert set(inside.status["Uid"].split() + inside.status["Gid"].split()) == {"1000"}
    assert "ro" in inside.mounts["/"]
