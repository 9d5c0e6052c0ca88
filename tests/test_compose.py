"""The isolation that docker-compose.yml promises, read from the file; every service, both hospitals, every kit."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.study import load_study
from server.federation.provision import KitSite, provision, select_services

ROOT = Path(__file__).resolve().parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
HOSPITALS = ("source", "target")
#: A network without a router and without an address of the host's.
CLOSED = {"internal": True, "driver_opts": {"com.docker.network.bridge.inhibit_ipv4": "true"}}
DIGEST = r"@sha256:[0-9a-f]{64}"
LASTING = [name for name, service in SERVICES.items() if "profiles" not in service]


def mounts(service: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """Path in the container -> (what is mounted there, whether it can be written)."""
    found = {}
    for volume in service.get("volumes", ()):
        parts = re.fullmatch(r"(\$\{[^}]*\}[^:]*|[^:]+):([^:]+)(:ro)?", volume)
        assert parts, volume
        found[parts.group(2)] = (parts.group(1), parts.group(3) is None)
    return found


def option(service: Mapping[str, Any], name: str) -> str | None:
    """The value of a command's option, an empty text for a flag, None where it is not given."""
    for part in service["command"]:
        if part == name or part.startswith(name + "="):
            return str(part).partition("=")[2]
    return None


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    user = str(service["user"])
    assert user == "${CROSSPROBE_UID:-1000}:${CROSSPROBE_GID:-1000}"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    for opening in ("privileged", "devices", "pid", "ipc", "extra_hosts"):
        assert opening not in service
    assert not any("docker.sock" in source for source, _ in mounts(service).values())


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned(name: str) -> None:
    image = re.sub(r"^\$\{CROSSPROBE_PROXY_IMAGE:-(.*)\}$", r"\1", SERVICES[name]["image"])
    version = r"[a-z/-]+:\d+\.\d+\.\d+(-[a-z]+)?"
    assert re.fullmatch(version if "build" in SERVICES[name] else version + DIGEST, image)


def test_a_file_that_a_command_names_is_in_the_image() -> None:
    named = {part for service in SERVICES.values() for part in service.get("command", ()) if part.startswith("/app/")}
    assert named == {"/app/deploy/supernode.py"}
    node = (ROOT / "Dockerfile").read_text().partition("AS torch")[0]
    for path in named:
        assert (ROOT / path.removeprefix("/app/")).exists()
        assert re.search(rf"^COPY .*{path.removeprefix('/app/')}\b", node, flags=re.M)


def test_the_images_are_built_from_pinned_versions_as_another_user_than_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.M)[1:]
    (base,) = re.findall(r"^ARG BASE=(.*)$", text, flags=re.M)
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-bookworm" + DIGEST, base)
    assert COMPOSE["x-node"]["build"]["args"]["BASE"] == f"${{CROSSPROBE_BASE:-{base}}}"
    assert stages[0].startswith("${BASE} AS node\n")
    locked = r"--require-hashes --no-deps --only-binary :all: -r deploy/lock/\S+\.lock"
    for stage in stages:
        assert re.search(rf"pip install {locked}", stage)
    # Beside these only the checkout itself, by the setuptools out of a lock.
    others = re.findall(r"pip install (.*)", re.sub(f"pip install {locked}", "", text))
    assert set(others) == {"--no-deps --no-build-isolation -e ."}
    for stage in (stages[0], *stages[2:]):  # the second is only built upon
        assert stage.rstrip().endswith("USER crossprobe")


def test_torch_is_in_no_image_that_has_a_network() -> None:
    node = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.M)[1]
    assert "torch" not in node
    assert "COPY" in node
    assert "clients" not in node
    for hospital in HOSPITALS:
        for name in ("supernode", "superexec"):
            assert SERVICES[f"{hospital}-{name}"]["build"]["target"] == "node"


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_service_restarts_and_is_looked_after(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "proxy"])
def test_nothing_is_reported_looked_up_or_installed_at_run_time(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    two_pieces = 2 * 8 * int(environment["FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"])
    assert two_pieces / 1e6 < 30  # seconds at 1 Mbit/s, after which Flower sends them again
    assert "--insecure" not in SERVICES[name].get("command", ())
    assert "--allow-runtime-dependency-installation" not in SERVICES[name].get("command", ())


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_the_worker_has_no_network_and_writes_only_its_state_and_the_socket(hospital: str) -> None:
    worker = SERVICES[f"{hospital}-worker"]
    assert worker["network_mode"] == "none"
    assert "networks" not in worker
    assert "ports" not in worker
    kit, data = f"${{{hospital.upper()}_KIT:-./kits/{hospital}}}", f"${{{hospital.upper()}_DATA:-./sites/{hospital}}}"
    assert mounts(worker) == {
        "/site": (data, False),
        "/state": (f"{kit}/state", True),
        "/run/crossprobe": (f"{hospital}-socket", True),
    }


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_the_desks_pages_have_no_network_and_their_forwarder_has_no_data(hospital: str) -> None:
    pages, forward = (SERVICES[f"{hospital}-desk-{part}"] for part in ("pages", "forward"))
    assert pages["network_mode"] == "none"
    assert "networks" not in pages
    assert "ports" not in pages
    kit, data = f"${{{hospital.upper()}_KIT:-./kits/{hospital}}}", f"${{{hospital.upper()}_DATA:-./sites/{hospital}}}"
    archive = f"${{{hospital.upper()}_ARCHIVE:-./kits/{hospital}/archive}}"
    assert mounts(pages) == {
        "/site": (data, False),
        "/archive": (archive, False),
        "/models": (f"{kit}/models", False),
        "/predictions": (f"{kit}/predictions", True),
        "/study": (f"{kit}/study", False),
        "/state": (f"{kit}/state", True),
        "/run/desk": (f"{hospital}-desk-socket", True),
    }
    assert mounts(forward) == {"/run/desk": (f"{hospital}-desk-socket", False)}
    assert "network_mode" not in forward
    assert forward["networks"] == [f"{hospital}-loopback"]
    assert forward["dns"] == ["127.0.0.1"]
    sharing = [name for name, service in SERVICES.items() if f"{hospital}-loopback" in service.get("networks", ())]
    assert sharing == [f"{hospital}-desk-forward"]
    masquerade = "com.docker.network.bridge.enable_ip_masquerade"
    assert COMPOSE["networks"][f"{hospital}-loopback"]["driver_opts"][masquerade] == "false"
    (published,) = forward["ports"]
    assert re.fullmatch(rf"127\.0\.0\.1:\${{{hospital.upper()}_DESK_PORT:-\d+}}:8600", published)
    places = {name: option(pages, f"--{name}") for name in ("models", "predictions", "images")}
    assert places == {"models": "/models", "predictions": "/predictions", "images": "/archive"}
    # The page's address has to be that of the published port.
    assert published.split(":", 1)[1].rpartition(":")[0] == option(pages, "--port")
    assert option(pages, "--socket") == option(forward, "--socket") == "/run/desk/desk.sock"


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_the_hospitals_commands_write_a_sites_folder_and_nothing_that_others_read(hospital: str) -> None:
    desk = SERVICES[f"{hospital}-desk"]
    kit, data = f"${{{hospital.upper()}_KIT:-./kits/{hospital}}}", f"${{{hospital.upper()}_DATA:-./sites/{hospital}}}"
    assert desk["network_mode"] == "none"
    assert mounts(desk) == {
        "/site": (data, False),
        "/archive": (f"${{{hospital.upper()}_ARCHIVE:-./kits/{hospital}/archive}}", False),
        "/intake": (f"{kit}/intake", True),
        "/models": (f"{kit}/models", False),
        "/predictions": (f"{kit}/predictions", True),
        "/study": (f"{kit}/study", False),
        "/node": (f"{kit}/node", True),
        "/state": (f"{kit}/state", True),
    }
    writing = {name for name, service in SERVICES.items() for source, w in mounts(service).values()
               if w and source == f"{kit}/intake"}  # fmt: skip
    assert writing == {f"{hospital}-desk"}


def test_a_kit_has_every_folder_that_its_services_mount(tmp_path: Path) -> None:
    study = ROOT / "configs" / "demo.yaml"
    _, kit = provision(load_study(study), study, tmp_path, [KitSite("east", "target")], host="fl.example.org", port=443)
    variables = dict(line.split("=", 1) for line in (kit / ".env").read_text().splitlines())
    own = yaml.safe_load((kit / "compose.yaml").read_text())["services"]
    sources = {source for service in own.values() for source, _ in mounts(service).values()}
    for source in sources:
        place = re.sub(r"\$\{(\w+):-[^}]*\}", lambda found: variables[found[1]], source)
        made_there = ("./site", "./node/node", "./node/superexec.secret", "./node/runtime.crt", "./node/runtime.key")
        if "/" in place and place not in made_there:  # else a volume of the engine's
            assert (kit / place).exists(), source  # an engine would make it, as root


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_the_superexec_has_no_key_no_data_and_one_way_out(hospital: str) -> None:
    superexec = SERVICES[f"{hospital}-superexec"]
    assert superexec["networks"] == [f"{hospital}-inner"]
    assert COMPOSE["networks"][f"{hospital}-inner"] == CLOSED
    assert superexec["dns"] == ["127.0.0.1"]
    sharing = [name for name, service in SERVICES.items() if f"{hospital}-inner" in service.get("networks", ())]
    assert sorted(sharing) == [f"{hospital}-superexec", f"{hospital}-supernode"]
    kit = f"${{{hospital.upper()}_KIT:-./kits/{hospital}}}"
    assert mounts(superexec) == {
        "/etc/crossprobe/superexec.secret": (f"{kit}/node/superexec.secret", False),
        "/etc/crossprobe/runtime.crt": (f"{kit}/node/runtime.crt", False),
        "/run/crossprobe": (f"{hospital}-socket", False),
    }
    assert superexec["environment"]["CROSSPROBE_SOCKET"] == "/run/crossprobe/worker.sock"
    assert "ports" not in superexec


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_the_supernode_has_the_key_and_neither_code_nor_data(hospital: str) -> None:
    supernode = SERVICES[f"{hospital}-supernode"]
    sources = {source for source, _ in mounts(supernode).values()}
    assert not any(writable for _, writable in mounts(supernode).values())
    assert not any("_DATA" in source or "/state" in source or "socket" in source for source in sources)
    assert option(supernode, "--auth-supernode-private-key") == "/etc/crossprobe/node"
    assert option(supernode, "--isolation") == "process"
    assert option(supernode, "--superexec-auth-secret-file")
    assert option(supernode, "--root-certificates")
    assert "ports" not in supernode


def test_no_file_or_socket_is_shared_between_hospitals() -> None:
    own = {
        hospital: {
            source
            for name, service in SERVICES.items()
            if name.startswith(hospital)
            for source, _ in mounts(service).values()
        }
        for hospital in HOSPITALS
    }
    assert not own["source"] & own["target"]


def test_the_coordinator_authenticates_and_shows_only_the_proxy() -> None:
    superlink = SERVICES["superlink"]
    for name in ("--enable-supernode-auth", "--disable-runtime-dependency-installation"):
        assert option(superlink, name) == ""
    assert option(superlink, "--isolation") == "process"
    for name in ("--ssl-ca-certfile", "--ssl-certfile", "--ssl-keyfile", "--superexec-auth-secret-file"):
        path = option(superlink, name)
        assert path in mounts(superlink)
    database = option(superlink, "--database")
    assert database
    assert mounts(superlink)[str(Path(database).parent)][1]
    shown = {name for name, service in SERVICES.items() if "ports" in service}
    assert shown == {"proxy", "source-desk-forward", "target-desk-forward"}
    assert COMPOSE["networks"]["coordinator"] == CLOSED
    for name in ("superlink", "serverapp", "console"):
        assert SERVICES[name]["networks"] == ["coordinator"]
    assert not {"superlink", "serverapp"} & {n for n, s in SERVICES.items() if "wan" in s.get("networks", ())}


def test_the_kits_hold_the_same_services(tmp_path: Path) -> None:
    study = ROOT / "configs" / "demo.yaml"
    sites = [KitSite("north", "source"), KitSite("east", "target")]
    for kit in provision(load_study(study), study, tmp_path, sites, host="fl.example.org", port=443):
        own = yaml.safe_load((kit / "compose.yaml").read_text())["services"]
        role = {"north": "source-", "east": "target-"}.get(kit.name, "")
        for name, service in own.items():
            original = json.dumps({k: v for k, v in SERVICES[role + name].items() if k != "build"})
            if role:
                original = original.replace(f"${{{role[:-1].upper()}_", "${SITE_").replace(role, "")
            assert service == json.loads(original)
        names = (
            {"superlink", "serverapp", "proxy", "console"}
            if not role
            else {"supernode", "superexec", "worker", "desk", "desk-pages", "desk-forward"}
        )
        assert set(own) == names
    assert "COORDINATOR_ADDRESS=fl.example.org:443" in (tmp_path / "north" / ".env").read_text()


def test_a_kit_declares_every_network_and_volume_that_it_uses() -> None:
    cut = select_services(COMPOSE, lambda name: name.startswith("target-"), prefix="target")
    assert set(cut["networks"]) == {"inner", "wan", "loopback"}
    assert set(cut["volumes"]) == {"socket", "desk-socket"}


def test_a_gpu_is_given_to_the_worker_and_to_the_hospitals_commands_and_nothing_else_changes(tmp_path: Path) -> None:
    study = ROOT / "configs" / "demo.yaml"
    _, kit = provision(load_study(study), study, tmp_path, [KitSite("east", "target")], host="fl.example.org", port=443)
    override = yaml.safe_load((kit / "compose.gpu.yaml").read_text())
    gpu = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    change = {"deploy": {"resources": {"reservations": {"devices": [gpu]}}}}
    assert override == {"services": {"worker": change, "desk": change, "desk-pages": change}}
    assert override["services"].keys() <= yaml.safe_load((kit / "compose.yaml").read_text())["services"].keys()
    assert "COMPOSE_FILE=compose.yaml:compose.gpu.yaml" in (kit / "README.md").read_text()


def test_compose_itself_accepts_the_file() -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("`docker compose` is not installed here")
    done = subprocess.run(
        ["docker", "compose", "-f", str(ROOT / "docker-compose.yml"), "--profile", "*", "config", "--quiet"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
