"""The kits in running containers: a coordinator, a source and two targets, joined only by the published port.

`make container-test`; needs a container engine, or root and Debian's packages to start one.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from engine import Engine, engine, missing, serving, serving_wheels
from federation import free_port, wait_until
from kits import CONFINED, Inside, Kit, under
from tiny import Between, Change

from clients.data.site import load_site
from clients.governance.ledger import read as read_ledger
from clients.governance.state import State
from clients.node.refusals import refusal
from clients.node.worker import Worker
from common.messages import pack, unpack
from common.run_folder import RunFolder
from common.study import load_study
from server import history
from server.run import run_study

pytestmark = pytest.mark.containers

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "configs" / "rehearsal.yaml"
HOSTILE = ROOT / "tests" / "hostile"
SITES = {"north": "source", "east": "target", "west": "target"}
PHANTOMS = ["--source", "north=lumify_like", "--target", "east=telemed_like", "--target", "west=cart_dev"]
HOSPITAL, COORDINATOR = ("supernode", "superexec", "worker"), ("superlink", "serverapp", "proxy")
#: Where the engine finds the machine's name server; loopback, as on machines with a resolver of their own.
RESOLVER = "127.0.0.53"
#: An address for documents that no packet is delivered to (RFC 5737).
OUTSIDE = "198.51.100.1"
CAPTIVE = "was-carried-out.example.org"
COMES_BACK_S = 240.0
#: All that shipped code can read beside itself: what proves to the SuperNode who asks.
SHARED_SECRET = "/etc/crossprobe/superexec.secret"


class Questions:
    """A name server that knows nothing and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((RESOLVER, 53))
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                question, sender = self._socket.recvfrom(4096)
                self.asked.append(question)
                self._socket.sendto(question[:2] + b"\x81\x83" + question[4:6] + bytes(6) + question[12:], sender)

    def heard(self, name: str) -> bool:
        """Whether a question for a name came, as DNS writes it."""
        return any(name.split(".")[0].encode() in question for question in self.asked)

    def close(self) -> None:
        self._socket.close()


class Doorbell(BaseHTTPRequestHandler):
    """Something that a machine of a hospital's serves to its own network."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Desk:
    """What was seen of a hospital's desk while it was up.

    Attributes:
        shown: status and text of its page at this machine's loopback, by the address that it printed.
        without_token: status of the same page without the token.
        elsewhere: address of this machine's -> whether the desk's port answered there.
        pages, forward: looks into its two containers.
        running: containers of it that ran on after Ctrl-C.
    """

    shown: tuple[int, str]
    without_token: int
    elsewhere: dict[str, bool]
    pages: Inside
    forward: Inside
    running: list[str]


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
    desk: "Desk | None" = None

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


def sit_at_the_desk(story: Story, root: Path) -> None:
    """Start east's desk as its README says, open its page, try to reach it otherwise, and end it with Ctrl-C."""
    east, log = story.kits["east"], root / "desk.log"
    process = east.background(under((east.folder / "README.md").read_text(), "In a browser instead."), log)
    try:
        printed = rf"http://127\.0\.0\.1:{east.desk_port}(/\?token=\S+)"
        wait_until(lambda: re.search(printed, log.read_text()), f"the desk's address, see {log}", 180)
        place = re.search(printed, log.read_text())
        assert place is not None
        machine = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
        others = {host for host in [*machine, story.engine.gateway()] if host and ":" not in host}
        seen = {
            "without_token": _page(east.desk_port, "/")[0],
            "shown": _page(east.desk_port, place.group(1)),
            "elsewhere": {host: _answers(host, east.desk_port) for host in sorted(others)},
            "pages": east.inside("desk-pages"),
            "forward": east.inside("desk-forward"),
        }
        ask = "import socket\ntry: socket.getaddrinfo('desk.example.org', 443)\nexcept OSError: pass\n"
        east.run_in("desk-forward", "python", "-c", ask)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    running = [each for part in ("pages", "forward") for each in _running(east, f"desk-{part}")]
    story.desk = Desk(**seen, running=running)


def _page(port: int, path: str) -> tuple[int, str]:
    """Return the status and the text of the desk's page, its one redirection followed as a browser does."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    reply = connection.getresponse()
    text = reply.read().decode()
    if reply.status in (302, 303):
        cookie = reply.getheader("Set-Cookie", "").partition(";")[0]
        connection.request("GET", reply.getheader("Location"), headers={"Cookie": cookie})
        reply = connection.getresponse()
        text = reply.read().decode()
    return reply.status, text


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=3):
        return True
    return False


def _running(kit: Kit, service: str) -> list[str]:
    label = [f"label=com.docker.compose.project={kit.project}", f"label=com.docker.compose.service={service}"]
    return kit.engine.docker("ps", "-q", "--filter", label[0], "--filter", label[1]).stdout.split()


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


def addresses(story: Story, doorbell: int, port: int) -> list[tuple[str, int]]:
    """Return every place that a hospital's shipped code has no business at."""
    machine = [
        story.engine.gateway(),
        *subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split(),
    ]
    places = [(host, number) for host in machine if ":" not in host for number in (doorbell, port)]
    places += [(OUTSIDE, 443), ("127.0.0.1", 9094)]
    for kit in story.kits.values():
        for service in COORDINATOR if kit is story.coordinator else HOSPITAL:
            for network, content in kit.inspect(service)["NetworkSettings"]["Networks"].items():
                if network.endswith("_inner"):
                    story.inner[f"{kit.name}-{service}"] = content["IPAddress"]
                elif content["IPAddress"]:
                    places += [(content["IPAddress"], number) for number in (8443, 9443, 9094)]
                gateway = story.engine.gateway(network)
                places += [(gateway, number) for number in (doorbell, port) if gateway]
    places += [(address, 9094) for name, address in story.inner.items() if name.endswith("supernode")]
    return sorted(set(places))


def attack(story: Story, doorbell: int, port: int) -> None:
    """Have the coordinator ship code that tries, and see that the same attempts work where they may."""
    plan = {
        "addresses": addresses(story, doorbell, port),
        "names": ["superlink", "proxy", "worker", CAPTIVE],
        "files": [
            *(
                f"/etc/crossprobe/{name}"
                for name in ("node", "runtime.key", "ca.crt", "server.key", "superexec.secret")
            ),
            *("/site/site.yaml", "/state/secret", "/node/node", "/study/study.yaml", "/etc/shadow"),
            *("/var/run/docker.sock", "/dev/mem", "/dev/kmsg", "/proc/kcore", "/proc/sysrq-trigger"),
        ],
        "folders": ["/", "/app", "/etc", "/etc/crossprobe", "/run/crossprobe", "/usr/local/bin", "/var/tmp", "/tmp"],
    }
    runs = story.coordinator.folder / "runs"
    (runs / "hostile-plan.json").write_text(json.dumps(plan))
    mount = ("-v", f"{HOSTILE}:/hostile:ro")
    story.said["hostile"] = story.coordinator.compose("run", "--rm", *mount, "console", "python", "/hostile/submit.py")
    story.found = json.loads((runs / "hostile-found.json").read_text())
    code = (
        "import socket\n"
        f"try: socket.create_connection(({story.engine.gateway()!r}, {doorbell}), 5); print('connected')\n"
        "except OSError as error: print(error)\n"
    )
    story.controls["doorbell"] = story.kits["north"].run_in("supernode", "python", "-c", code).strip()
    ask = "import socket\ntry: socket.getaddrinfo('control.example.org', 443)\nexcept OSError: pass\n"
    story.kits["north"].run_in("supernode", "python", "-c", ask)


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


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The whole of it, in about ten minutes; whatever fails, everything is taken down."""
    lacking = missing()
    assert not lacking, f"{lacking}. On Debian: apt-get install docker.io docker-compose debootstrap"
    root, port = tmp_path_factory.mktemp("containers"), free_port()
    with engine() as found, contextlib.ExitStack() as stack:
        kits = make_kits(root, found, port)
        story = Story(found, kits)
        with serving_wheels(found):
            for kit in (story.coordinator, kits["north"]):  # the targets' images are the source's
                kit.do(1)
        if found.own:
            found.stop()
            found.start(RESOLVER)
            story.questions = Questions()
            stack.callback(story.questions.close)
        for kit in kits.values():
            stack.callback(partial(found.docker, "container", "prune", "-f", check=False))
            stack.callback(partial(kit.compose, "down", "-v", "-t", "2"))
        doorbell = stack.enter_context(serving(("0.0.0.0", 0), Doorbell))
        story.coordinator.do(2)
        for name, kit in story.hospitals.items():
            story.said[f"{name} check"] = kit.do(2)
            kit.do(3)
            kit.do(4)
            story.said[f"{name} approve"] = kit.do(5, answer="yes\n")
        sit_at_the_desk(story, root)
        start_before_registration(story)
        register(story)
        for name in ("north", "east"):
            kits[name].do(6)
        wait_until(lambda: kits["west"].healthy(*HOSPITAL), "the newcomer got in by itself", COMES_BACK_S)
        look_inside(story)
        attack(story, doorbell, port)
        run_through_a_restart(story, root)
        story.said["status"], story.said["report"] = story.coordinator.do(5), story.coordinator.do(6)
        for name, kit in story.hospitals.items():
            story.said[f"{name} ledger"] = kit.do(7)
        take_down(story)
        yield story


def test_the_released_tensors_are_the_simulations_bit_for_bit(story: Story, tmp_path: Path) -> None:
    study = load_study(STUDY)
    missed = {
        (record.round, name)
        for record in history.read(story.run_folder)
        if record.counted
        for name, site in record.sites.items()
        if site.status != "ok"
    }

    def absent(name: str, request: bytes, reply: bytes) -> bytes:
        header, _ = unpack(request)
        return pack(refusal("worker-unreachable")) if (getattr(header, "round", None), name) in missed else reply

    change: dict[str, Change] = {name: partial(absent, name) for name in SITES}
    workers = [
        Worker(load_site(kit.folder / "site"), study, State(kit.folder / "state").secret(0))
        for kit in story.hospitals.values()
    ]
    run_study(study, Between(workers, change), tmp_path)
    assert RunFolder(story.run_folder).model.read_bytes() == RunFolder(tmp_path).model.read_bytes()


def test_the_engine_was_restarted_in_mid_run_and_every_round_counted(story: Story) -> None:
    rounds = len(list(load_study(STUDY).rounds()))
    assert 0 < story.rounds_at_restart < rounds
    assert [record.round for record in history.read(story.run_folder) if record.counted] == list(range(rounds))
    assert (story.run_folder / "report.html").stat().st_size > 10_000
    assert "finished:completed" in story.said["status"]


def test_a_newcomer_who_starts_first_is_told_why_and_is_in_once_registered(story: Story) -> None:
    assert "Exit Code: 305" in story.early["logs"]
    assert "Failed to activate SuperNode" in story.early["logs"]
    assert story.early["others"]  # the others are healthy, and only the SuperNode waits


@pytest.mark.parametrize("name", SITES)
def test_a_hospital_sees_its_data_its_question_and_what_left(story: Story, name: str) -> None:
    assert f"{name}: a {SITES[name]} site without findings" in story.said[f"{name} check"]
    assert "approved by" in story.said[f"{name} approve"]
    assert "sent:" in story.said[f"{name} ledger"]
    done = [
        e
        for e in read_ledger(story.kits[name].folder / "state" / "ledger.jsonl")
        if e["task"] and e["direction"] == "out"
    ]
    assert len({entry["round"] for entry in done}) == len(list(load_study(STUDY).rounds()))


@pytest.mark.parametrize("service", COORDINATOR)
def test_a_service_of_the_coordinator_is_confined(story: Story, service: str) -> None:
    confined(story.inside["coordinator", service])


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("service", HOSPITAL)
def test_a_service_of_a_hospital_is_confined(story: Story, name: str, service: str) -> None:
    confined(story.inside[name, service])


def confined(inside: Inside) -> None:
    assert inside.confined == CONFINED
    assert set(inside.status["Uid"].split() + inside.status["Gid"].split()) == {"1000"}
    assert "ro" in inside.mounts["/"]


@pytest.mark.parametrize("name", SITES)
def test_the_worker_has_no_interface_and_writes_its_state_and_the_socket(story: Story, name: str) -> None:
    inside = story.inside[name, "worker"]
    assert inside.interfaces == {"lo"}
    assert inside.writable() == {"/state", "/run/crossprobe", "/tmp"}
    assert "ro" in inside.mounts["/site"]


@pytest.mark.parametrize("name", SITES)
def test_the_other_two_write_nothing_that_lasts(story: Story, name: str) -> None:
    for service, interfaces in (("supernode", 3), ("superexec", 2)):
        inside = story.inside[name, service]
        assert inside.writable() == {"/tmp"}
        assert len(inside.interfaces) == interfaces
        assert not {path for path in inside.mounts if path.startswith(("/site", "/state"))}
    assert "/etc/crossprobe/node" not in story.inside[name, "superexec"].mounts


def test_shipped_code_ran_at_every_hospital(story: Story) -> None:
    assert len(story.found) == len(SITES)
    for found in story.found:
        assert sorted(found["interfaces"]) == ["eth0", "lo"]
        assert found["write"]["/tmp"] == "written"  # the attempts do work where they may
        assert found["read"][SHARED_SECRET] is True


def test_shipped_code_reaches_its_supernode_and_nothing_else(story: Story) -> None:
    assert story.controls["doorbell"] == "connected"  # somebody does answer there
    reached = [{place for place, came in found["connect"].items() if came == "connected"} for found in story.found]
    own = [f"{address}:9094" for name, address in story.inner.items() if name.endswith("supernode")]
    assert sorted(place for places in reached for place in places) == sorted(own)
    assert {len(places) for places in reached} == {1}
    for found in story.found:
        assert found["ipv6"] == "" or found["ipv6"].split()[-1] == "lo"


def test_shipped_code_tells_nothing_by_the_names_that_it_asks_for(story: Story) -> None:
    assert all("gaierror" in came for found in story.found for came in found["names"].values())
    if story.questions is not None:
        assert story.questions.heard("control.example.org")  # a container with a way out is heard
        assert not story.questions.heard(CAPTIVE)


def test_shipped_code_finds_no_image_no_key_and_nothing_to_write(story: Story) -> None:
    for found in story.found:
        assert found["files"]["images"] == []
        assert found["files"]["keys"] == [SHARED_SECRET]
        assert [path for path, came in found["read"].items() if came is True] == [SHARED_SECRET]
        assert "written" not in {came for folder, came in found["write"].items() if folder != "/tmp"}
        assert "Read-only" in found["replace_socket"]


def test_shipped_code_gets_no_more_rights_than_it_has(story: Story) -> None:
    for found in story.found:
        assert set(found["ids"]) == {1000}
        for attempt in ("become_root", "raw_socket", "packet_socket", "chroot", "device"):
            assert "not permitted" in found[attempt], attempt
        for attempt in ("mount", "remount", "new_user", "new_net"):
            assert "not permitted" in found[attempt], attempt
        assert found["forks"] < 512
        assert not [line for line in found["processes"] if "crossprobe worker" in line or "flower-supernode" in line]
        assert not [name for name in found["environment"] if re.search("KEY|SECRET|TOKEN|PASS|KIT|DATA|ADDRESS", name)]


def test_shipped_code_hears_no_more_from_the_worker_than_the_contract_has(story: Story) -> None:
    for found in story.found:
        assert '"kind":"refused","code":"not-a-message"' in found["junk"]
        assert "UNIMPLEMENTED" in found["other_method"]


def test_the_desk_answers_at_this_machines_loopback_to_who_has_the_token(story: Story) -> None:
    assert story.desk is not None
    status, text = story.desk.shown
    assert status == 200
    assert "east" in text
    assert story.desk.without_token == 403
    assert story.desk.elsewhere
    assert not any(story.desk.elsewhere.values()), story.desk.elsewhere


def test_the_desks_process_with_the_images_has_no_network_and_the_other_one_no_data(story: Story) -> None:
    assert story.desk is not None
    for inside in (story.desk.pages, story.desk.forward):
        confined(inside)
    assert story.desk.pages.interfaces == {"lo"}
    assert story.desk.pages.writable() == {"/state", "/run/desk", "/tmp", "/predictions"}
    assert story.desk.forward.writable() == {"/tmp"}
    assert not {
        path for path in story.desk.forward.mounts if path.startswith(("/site", "/state", "/study", "/predictions"))
    }


def test_the_desks_forwarder_tells_nothing_by_the_names_that_it_asks_for(story: Story) -> None:
    if story.questions is not None:
        assert not story.questions.heard("desk.example.org")


def test_the_desk_ends_with_its_command(story: Story) -> None:
    assert story.desk is not None
    assert story.desk.running == []


def test_an_image_holds_no_tests_and_nothing_to_build_against(story: Story) -> None:
    for image in ("crossprobe-node:0.1.0", "crossprobe-worker:0.1.0", "crossprobe-server:0.1.0"):
        look = "find / -xdev -name tests -path '*-packages/*' -o -xdev -path '*/torch/include'"
        assert story.engine.docker("run", "--rm", image, "sh", "-c", look, check=False).stdout.strip() == ""


def test_everything_was_taken_down(story: Story) -> None:
    assert {name: left for name, left in story.left_over.items() if left} == {}
