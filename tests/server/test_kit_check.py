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
    (kit / "state" / "secret").write_bytes(b"x")
    assert check_kit(kit, SITE) == []


def composed(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def edit(kit: Path) -> None:
        content = yaml.safe_load((kit / "compose.yaml").read_text())
        change(content["services"])
        (kit / "compose.yaml").write_text(yaml.safe_dump(content, sort_keys=False, width=110))

    return edit


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
        (environment("CROSSPROBE_UID=0"), "containers would run as root"),
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


def test_a_kit_of_another_name_or_role_or_none_is_told(
    kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert any("README.md" in found for found in check_kit(kit, KitSite("west", "target")))
    assert check_kit(kit, KitSite("east", "source")) != []
    assert main(["check-kit", str(tmp_path), "--site", "east:target"]) == 1
    assert "Traceback" not in capsys.readouterr().err
