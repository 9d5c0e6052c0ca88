"""A coordinator, a source and two targets in containers, from their kits to `down`, as their READMEs say it."""

import contextlib
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from container_desk import Desk
from engine import Engine
from kits import Inside, Kit
from processes import wait_until
from questions import RESOLVER, Questions

from server import history
from simulations.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "configs" / "rehearsal.yaml"
SITES = {"north": "source", "east": "target", "west": "target"}
PHANTOMS = ["--source", "north=lumify_like", "--target", "east=telemed_like", "--target", "west=cart_dev"]
HOSPITAL, COORDINATOR = ("supernode", "superexec", "worker"), ("superlink", "serverapp", "proxy")
COMES_BACK_S = 240.0


@dataclass
class Story:
    """What happened, in order; the tests read it."""

    engine: Engine
    kits: dict[str, Kit]
    said: dict[str, str] = field(default_factory=dict)
    inside: dict[tuple[str, str], Inside] = field(default_factory=dict)
    found: list[dict[str, Any]] = field(default_factory=list)
    controls: dict[str, str] = field(default_factory=dict)
    early: dict[str, Any] = field(default_factory=dict)
    rounds_at_restart: int = 0
    inner: dict[str, str] = field(default_factory=dict)
    questions: Questions | None = None
    left_over: dict[str, list[str]] = field(default_factory=dict)
    desk: Desk | None = None

    @property
    def coordinator(self) -> Kit:
        return self.kits["coordinator"]

    @property
    def hospitals(self) -> dict[str, Kit]:
        return {name: self.kits[name] for name in SITES}

    @property
    def run_folder(self) -> Path:
        return self.coordinator.folder / "runs" / "first"

    def all_healthy(self) -> bool:
        return self.coordinator.healthy(*COORDINATOR) and all(k.healthy(*HOSPITAL) for k in self.hospitals.values())


def crossprobe(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "crossprobe", *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_kits(root: Path, found: Engine, port: int) -> dict[str, Kit]:
    """Provision, and put each hospital's phantom where its README wants it."""
    base, proxy = found.base_images()
    kits = root / "kits"
    sites = [word for name, role in SITES.items() for word in ("--site", f"{name}:{role}")]
    crossprobe("provision", str(STUDY), "--out", str(kits), "--address", found.gateway(), "--port", str(port), *sites)
    counts = [
        word
        for split, n in (("train", 6), ("calibrate", 5), ("val", 5), ("test", 5))
        for word in (f"--{split}", str(n))
    ]
    crossprobe("phantom", str(root / "sites"), *PHANTOMS, *counts)
    made = {}
    for name in ("coordinator", *SITES):
        if name in SITES:
            shutil.move(root / "sites" / name, kits / name / "site")
        assert "chown -R 1000:1000 ." in (kits / name / "README.md").read_text()
        subprocess.run(["chown", "-R", "1000:1000", "."], cwd=kits / name, check=True)
        made[name] = Kit(found, kits / name, f"crossprobe-test-{name}", ROOT, base, proxy, free_port())
    return made


def start_before_registration(story: Story) -> None:
    """A newcomer starts first and lets the coordinator register later."""
    west = story.kits["west"]
    story.said["early"] = west.do(6, check=False, changes=("--wait-timeout 300", "--wait-timeout 60"))
    story.early["logs"] = west.compose("logs", "supernode")
    # compose 1 does not wait for health, and a worker is first asked after 20 s
    wait_until(lambda: west.healthy("superexec", "worker"), "west's SuperExec and worker are healthy", 180)
    story.early["others"] = not west.healthy("supernode")


def register(story: Story) -> None:
    for name, kit in story.hospitals.items():
        for origin, sort in (("node/node.pub", "node"), ("state/signing.pub", "signing")):
            shutil.copyfile(kit.folder / origin, story.coordinator.folder / "sites" / f"{name}.{sort}.pub")
    story.said["register"] = story.coordinator.do(3)


def look_inside(story: Story) -> None:
    for kit in story.kits.values():
        for service in COORDINATOR if kit is story.coordinator else HOSPITAL:
            story.inside[kit.name, service] = kit.inside(service)


def run_through_a_restart(story: Story, root: Path) -> None:
    """Run the study, restart the engine under it, and go on as the README says."""
    with contextlib.ExitStack() as stack:
        process = story.coordinator.background(story.coordinator.commands(4), root / "run.log")
        stack.callback(process.wait)
        stack.callback(process.kill)
        wait_until(lambda: len(history.read(story.run_folder)) >= 2, f"two rounds, see {root / 'run.log'}", 400)
        story.rounds_at_restart = len(history.read(story.run_folder))
        if story.engine.own:
            story.engine.stop()
            story.engine.start(RESOLVER)
        else:
            for kit in story.kits.values():
                story.engine.docker("restart", *kit.compose("ps", "-q").split())
    wait_until(story.all_healthy, "everything is healthy again", COMES_BACK_S)
    out = "--out /runs/first"
    story.said["run"] = story.coordinator.do(4, changes=(out, f"{out} --resume"))


def take_down(story: Story) -> None:
    for kit in story.kits.values():
        kit.do(7 if kit is story.coordinator else 8)
        label = f"label=com.docker.compose.project={kit.project}"
        ids = {
            "containers": story.engine.docker("ps", "-aq", "--filter", label).stdout.split(),
            "networks": story.engine.docker("network", "ls", "-q", "--filter", label).stdout.split(),
        }
        story.left_over[kit.name] = [each for kind in ids.values() for each in kind]
        volumes = story.engine.docker("volume", "ls", "-q", "--filter", label).stdout.split()
        if volumes:
            story.engine.docker("volume", "rm", *volumes)
