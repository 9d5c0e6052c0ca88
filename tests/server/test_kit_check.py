"""A hospital's look at the kit that a coordinator sent: what a hostile one would change is found."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny import write_study

from common.study import load_study
from crossprobe import main
from server.federation.kit_check import check_kit
from server.federation.provision import KitSite, provision

SITE = KitSite("east", "target")


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    study = write_study(tmp_path / "study.yaml")
    return provision(load_study(study), study, tmp_path / "kits", [SITE], host="fl.example.org", port=443)[1]


def run(kit: Path, *more: str) -> int:
    return main(["check-kit", str(kit), "--site", "east:target", *more])


def test_the_kit_as_it_was_made_is_as_this_version_makes_it(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(kit) == 0
    assert "is the kit that this version makes for east:target" in capsys.readouterr().out
    environment = (kit / ".env").read_text()
    # what a hospital changes itself
    (kit / ".env").write_text(
        environment.replace("SITE_DATA=./site", "SITE_DATA=/data/site")
        + "# a GPU\nCOMPOSE_FILE=compose.yaml:compose.gpu.yaml\n"
    )
    assert [line for line in check_kit(kit, SITE) if "SITE_DATA" not in line] == []
    (kit / "state" / "secret").write_bytes(b"x")
    (kit / "site").mkdir()
    (kit / "site" / "site.yaml").write_bytes(b"x")
    assert check_kit(kit, SITE, in_use=True) == []
    assert run(kit) == 1
    assert run(kit, "--in-use") == 0


def composed(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def edit(kit: Path) -> None:
        content = yaml.safe_load((kit / "compose.yaml").read_text())
        change(content["services"])
        (kit / "compose.yaml").write_text(yaml.safe_dump(content, sort_keys=False, width=110))

    return edit


def replaced(name: str, value: str) -> Callable[[Path], object]:
    def edit(kit: Path) -> None:
        lines = (kit / ".env").read_text().splitlines()
        own = [f"{name}={value}" if line.startswith(f"{name}=") else line for line in lines]
        (kit / ".env").write_text("\n".join(own) + "\n")

    return edit


def as_user(number: str) -> Callable[[Path], object]:
    return replaced("CROSSPROBE_UID", number)


def addressed(address: str) -> Callable[[Path], object]:
    return replaced("COORDINATOR_ADDRESS", address)


def environment(line: str) -> Callable[[Path], object]:
    def edit(kit: Path) -> None:
        with open(kit / ".env", "a") as file:
            file.write(line + "\n")

    return edit


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (composed(lambda services: services["worker"].pop("network_mode")), "network_mode"),
        (composed(lambda services: services["superexec"]["volumes"].append("./site:/site:ro")), "./site:/site:ro"),
        (composed(lambda services: services["worker"].update(command=["sh", "-c", "true"])), "true"),
        (lambda kit: (kit / "compose.override.yaml").write_text("services: {}"), "compose.override.yaml is of no kit"),
        (lambda kit: (kit / "docker-compose.yml").write_text("services: {}"), "docker-compose.yml is of no kit"),
        (lambda kit: (kit / "compose.gpu.yaml").write_text("services: {}"), "compose.gpu.yaml is not the one"),
        (lambda kit: (kit / "README.md").write_text("sudo sh install.sh"), "sudo sh install.sh"),
        (lambda kit: (kit / "compose.gpu.yaml").unlink(), "compose.gpu.yaml is missing"),
        (environment("COMPOSE_FILE=other.yaml"), "COMPOSE_FILE to other.yaml"),
        (environment("DOCKER_HOST=tcp://evil:2375"), ".env sets DOCKER_HOST"),
        (environment("SITE_KIT=/"), ".env sets SITE_KIT to /"),
        (as_user("0"), "a user who is not root"),
        (as_user("00"), "a user who is not root"),
        (as_user("root"), "a user who is not root"),
        (as_user('"0"'), "plain letters, without quotes"),
        (as_user("0 # x"), "plain letters, without quotes"),
        (as_user("${X:-0}"), "plain letters, without quotes"),
        (environment("CROSSPROBE_GID=1000"), "sets CROSSPROBE_GID once more"),
        # read otherwise by docker compose than by a plain eye
        (environment("SITE_DESK_PORT='8600' COMPOSE_FILE=models/c.yaml"), "plain letters, without quotes"),
        (environment("COMPOSE_FILE=models/c.yaml\n#\x0cCOMPOSE_FILE=compose.yaml:compose.gpu.yaml"), "models/c.yaml"),
        (environment("A='x\nSITE_KIT=.\n'"), "plain letters, without quotes"),
        # what runs with it was made by whoever sent it
        (lambda kit: (kit / "state" / "secret").write_bytes(b"s" * 32), "state/secret is of no kit"),
        (lambda kit: (kit / "node" / "node.key").write_bytes(b"k"), "node/node.key is of no kit"),
        (lambda kit: (kit / "models" / "prepare.sh").write_bytes(b"x"), "models/prepare.sh is of no kit"),
        (
            lambda kit: ((kit / "predictions").rmdir(), (kit / "predictions").symlink_to("/home")),
            "predictions is a link",
        ),
        (lambda kit: (kit / "study" / "site.yaml").write_bytes(b"x"), "study/site.yaml is of no kit"),
        (addressed("fl.example.org:443 #`, then run `sh x"), "to be a host and a port"),
        (replaced("SITE_ARCHIVE", "/"), ".env sets SITE_ARCHIVE to /; a new kit has ./archive"),
        (addressed("fl.example.org"), "to be a host and a port"),
    ],
)
def test_what_a_hostile_coordinator_changes_in_a_kit_is_found(
    change: Callable[[Path], object], told: str, kit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(kit)
    assert run(kit) == 1
    shown = capsys.readouterr()
    assert told in shown.err
    assert "do not start it" in shown.err
    assert run(kit, "--json") == 1
    assert json.loads(capsys.readouterr().out)["as_made"] is False


def test_nothing_that_a_terminal_would_obey_is_printed(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(kit / "README.md", "ab") as file:
        file.write(b"\x1b[2J\x1b[3J\x1b[H all is well\x1b[8m\n" * 200)
    (kit / "\n\x1b[2J").write_bytes(b"")
    assert run(kit) == 1
    shown = capsys.readouterr().err
    assert "all is well" in shown
    assert "more lines" in shown
    assert all(letter.isprintable() or letter == "\n" for letter in shown)


def test_a_kit_of_another_name_or_role_or_none_is_told(
    kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert any("README.md" in found for found in check_kit(kit, KitSite("west", "target")))
    assert check_kit(kit, KitSite("east", "source")) != []
    assert main(["check-kit", str(tmp_path), "--site", "east:target"]) == 1
    assert "Traceback" not in capsys.readouterr().err
