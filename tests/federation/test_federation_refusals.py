"""Who has no business in a federation is refused at every port. Minutes, so `make federation-test`."""

import http.client
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from federation import Federation
from processes import wait_until
from tiny import write_study

from common.signing import SITES
from server.federation.authority import make_authority, make_server_certificate
from server.federation.flower_cli import FlowerCli, UnknownRun
from simulations.processes import free_port, listens

pytestmark = pytest.mark.federation

NGINX = os.environ.get("CROSSPROBE_NGINX") or shutil.which("nginx")
FLEET = ("pull-messages", "push-messages", "register-node", "activate-node", "get-fab", "get-run", "pull-object")
RUNTIME = ("acquire-task", "pull-task-input", "push-task-output", "push-messages", "pull-messages", "get-nodes")


@pytest.fixture(scope="module")
def federation(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A coordinator that knows `north` only."""
    root = tmp_path_factory.mktemp("refusals")
    with Federation(root, write_study(root / "study.yaml"), pair) as federation:
        federation.start_coordinator()
        federation.register("north")
        yield federation


def post(port: int, path: str, ca: Path) -> tuple[int, bytes]:
    """Send an empty message without credentials, to the path exactly as given."""
    context = ssl.create_default_context(cafile=str(ca))
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=10)
    connection.request("POST", path, body=b"", headers={"Content-Type": "application/protobuf"})
    response = connection.getresponse()
    return response.status, response.read()


def ends_with(federation: Federation, kit: str, **changes: str) -> str:
    """Start a SuperNode that must give up, and return what it said."""
    log = federation.log(kit, "supernode")
    before = len(log.read_text()) if log.exists() else 0
    process = federation.start(kit, "supernode", changes)
    assert process.wait(60) != 0
    federation.processes.pop(f"{kit}-supernode")
    return log.read_text()[before:]


def test_a_key_that_nobody_registered_is_refused(federation: Federation) -> None:
    said = ends_with(federation, "east")
    assert "Exit Code: 305" in said
    assert "Failed to activate SuperNode" in said


def test_a_site_with_another_authoritys_certificate_does_not_connect(federation: Federation, tmp_path: Path) -> None:
    make_authority(tmp_path)
    said = ends_with(federation, "north", **{str(federation.kits / "north" / "ca.crt"): str(tmp_path / "ca.crt")})
    assert "CERTIFICATE_VERIFY_FAILED" in said


def test_a_coordinator_with_another_authoritys_certificate_is_told_so(federation: Federation, tmp_path: Path) -> None:
    make_authority(tmp_path)
    keys = federation.public_keys("east")
    done = federation.console("study", "register", "east", *keys, "--ca", str(tmp_path / "ca.crt"))
    assert done.returncode == 1
    assert "Check that the SuperLink runs" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_cannot_be_registered_twice(federation: Federation) -> None:
    done = federation.console("study", "register", "other", *federation.public_keys("north"))
    assert done.returncode == 1
    assert "has its site already" in done.stderr


def test_a_run_that_the_superlink_never_had_is_told_from_one_that_is_away(federation: Federation) -> None:
    with pytest.raises(UnknownRun, match="does not know run 7"):
        FlowerCli(federation.address, federation.coordinator / "ca.crt").status("7")


def test_a_stolen_key_is_barred_by_its_sites_name(federation: Federation) -> None:
    cli = FlowerCli(federation.address, federation.coordinator / "ca.crt")
    federation.register("east")
    assert sorted(node.name for node in cli.nodes()) == ["east", "north"]
    running = federation.start("east", "supernode")
    wait_until(lambda: [node.name for node in cli.nodes() if node.online] == ["east"], "east is online")
    done = federation.console("study", "unregister", "east")
    assert done.returncode == 0, done.stderr
    assert "no run that starts or goes on from now takes the signature of east" in done.stdout
    assert "unregistered east: node " in done.stdout
    assert [node.name for node in cli.nodes()] == ["north"]
    assert "east.pub" not in [file.name for file in (federation.signing_keys / SITES).iterdir()]
    wait_until(lambda: running.poll() is not None, "a running SuperNode gives up", 90.0)
    federation.processes.pop("east-supernode")
    assert "Failed to activate SuperNode" in ends_with(federation, "east")
    done = federation.console("study", "unregister", "east")
    assert done.returncode == 1
    assert "no key is registered as east" in done.stderr
    assert "Registered: north" in done.stderr
    done = federation.console("study", "register", "east", *federation.public_keys("east"))
    assert done.returncode == 1
    assert "or was barred" in done.stderr
    done = federation.console("study", "unregister", "east", "--address", f"127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "Check that the SuperLink runs" in done.stderr


def test_an_expired_certificate_is_refused(federation: Federation, tmp_path: Path) -> None:
    make_server_certificate(federation.kits / "ca", tmp_path, ("localhost", "127.0.0.1"), days=-1)
    port, own = free_port(), str(federation.coordinator)
    changes = {f"{own}/server": f"{tmp_path}/server", str(federation.ports["superlink"]): str(port)}
    running = federation.processes.pop("coordinator-superlink")
    federation.start("coordinator", "superlink", changes | {"superlink.db": "expired.db"})
    expired = federation.processes.pop("coordinator-superlink")
    federation.processes |= {"coordinator-superlink": running, "expired-superlink": expired}
    wait_until(lambda: listens(port), "the SuperLink listens")
    said = ends_with(federation, "north", **{federation.address: f"127.0.0.1:{port}"})
    assert "certificate has expired" in said
    keys = federation.public_keys("east")
    done = federation.console("study", "register", "east", *keys, "--address", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert "has not expired" in done.stderr


@pytest.mark.parametrize("path", [f"/v1/fleet/{name}" for name in FLEET] + [f"/v1/runtime/{name}" for name in RUNTIME])
def test_the_superlink_answers_nobody_without_credentials(path: str, federation: Federation) -> None:
    status, _ = post(federation.ports["superlink"], path, federation.coordinator / "ca.crt")
    assert status in (401, 403)


def test_a_supernode_gives_its_tasks_to_nobody_without_the_secret(federation: Federation) -> None:
    federation.start("north", "supernode")
    wait_until(lambda: listens(federation.ports["north"]), "the SuperNode listens")
    for name in RUNTIME:
        status, _ = post(federation.ports["north"], f"/v1/runtime/{name}", federation.kits / "north/node/runtime.crt")
        assert status in (401, 403, 404), name
    federation.end("north-supernode", 15)


@pytest.fixture(scope="module")
def proxy(federation: Federation) -> int:
    """The port of the coordinator's reverse proxy, with the kit's own configuration."""
    if NGINX is None:
        pytest.skip("nginx is not installed here; CROSSPROBE_NGINX may name its program")
    port, kit = free_port(), federation.coordinator
    text = (kit / "proxy.conf").read_text()
    for there, here in {
        "listen 9443": f"listen 127.0.0.1:{port}",
        "superlink:8443": federation.address,
        "/tmp/": f"{federation.root}/",
        "/etc/crossprobe": str(kit),
    }.items():
        text = text.replace(there, here)
    (federation.root / "proxy.conf").write_text(text)
    command = [NGINX, "-e", "stderr", "-c", str(federation.root / "proxy.conf"), "-g", "daemon off;"]
    with open(federation.root / "proxy.log", "wb") as log:
        federation.processes["proxy"] = subprocess.Popen(command, stderr=log, start_new_session=True)
    wait_until(lambda: listens(port), "the proxy listens")
    return port


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/health",
        "/",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "//v1/control/list-runs",
        "/v1/control/../fleet/pull-messages",
        "/v1/fleet/pull-messages?x=/v1/control/",
    ],
)
def test_the_proxy_lets_nothing_through_but_the_fleet_api(path: str, proxy: int, federation: Federation) -> None:
    status, body = post(proxy, path, federation.coordinator / "ca.crt")
    assert status in (400, 404)
    assert b"nginx" in body  # its own answer, not the SuperLink's


def test_a_hospital_reaches_the_superlink_through_the_proxy(proxy: int, federation: Federation) -> None:
    status, body = post(proxy, "/v1/fleet/pull-messages", federation.coordinator / "ca.crt")
    assert (status, b"nginx" in body) == (401, False)
    federation.start("north", "supernode", {federation.address: f"127.0.0.1:{proxy}"})

    def online() -> bool:
        return any(node.online for node in FlowerCli(federation.address, federation.coordinator / "ca.crt").nodes())

    # The SuperLink refuses the same key for about a minute after its SuperNode went away.
    wait_until(online, federation.log("north", "supernode").read_text()[-500:], 60.0)
