"""A hospital whose clock is an hour ahead. `make network-test`."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from networked import PROXY, NetworkedFederation, missing
from tiny import content, write_study

from common.run_folder import RunFolder

LACKING = missing() or ("" if shutil.which("gcc") else "gcc is not installed, which makes a wrong clock")
pytestmark = [pytest.mark.network, pytest.mark.skipif(bool(LACKING), reason=LACKING)]

#: Flower takes what was signed up to 5 s ahead of its own clock, and up to 5 minutes behind.
AN_HOUR_S = 3600


@dataclass
class Outcome:
    """What a run between a hospital with a right clock and one with a wrong one came to.

    Attributes:
        seen: what `crossprobe doctor` says of the clock at the hospital that is an hour ahead.
        mended: exit code and words of the resumed run once that clock was set right.
    """

    federation: NetworkedFederation
    run: subprocess.CompletedProcess[str]
    seen: dict[str, str]
    mended: tuple[int, str]


@pytest.fixture(scope="module")
def outcome(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    root = tmp_path_factory.mktemp("clocks")
    stages = [stage | {"rounds": 1} for stage in content()["stages"] if stage["name"] == "pretrain"]
    study = write_study(root / "study.yaml", stages=stages)
    with NetworkedFederation(root, study, pair, clocks={"east": AN_HOUR_S}) as federation:
        federation.start_coordinator()
        federation.register()
        federation.start_sites()
        federation.wait(lambda: federation.accepted("north"), "north is in", 120)
        with federation.running() as running:
            code = federation.ended(running, 900)
        run = subprocess.CompletedProcess(running.args, code, federation.said.read_text())
        seen = _doctor(federation)
        federation.clocks["east"] = 0
        federation.kill("east-supernode")
        federation.wait(lambda: federation.accepted("east"), "east is in", 240)
        with federation.running("--resume") as running:
            mended = (federation.ended(running, 600), federation.said.read_text())
        yield Outcome(federation, run, seen, mended)


def _doctor(federation: NetworkedFederation) -> dict[str, str]:
    """Return what `doctor` says of the clock at east."""
    words = [
        "doctor",
        "--address",
        f"{PROXY}:{federation.proxy_port}",
        "--ca",
        str(federation.kits / "east" / "ca.crt"),
    ]
    around = federation.surroundings("east", "supernode")
    command = [*around, sys.executable, "-m", "crossprobe", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    checks: list[dict[str, str]] = json.loads(done.stdout)["checks"]
    (clock,) = [check for check in checks if check["check"] == "clock"]
    return clock


def test_a_clock_an_hour_ahead_keeps_its_hospital_out_and_the_run_names_it(outcome: Outcome) -> None:
    assert outcome.run.returncode == 1
    said = " ".join(outcome.run.stdout.split())
    assert "needs 1 target site(s), found 0" in said, said
    assert "Registered and not connected now: east." in said
    assert "Traceback" not in said


def test_at_the_hospital_the_doctor_names_the_clock(outcome: Outcome) -> None:
    assert outcome.seen["level"] == "mend"
    assert "s ahead of the coordinator's" in outcome.seen["found"]
    assert float(outcome.seen["found"].split()[0]) == pytest.approx(AN_HOUR_S, abs=30)


def test_with_the_clock_set_right_the_run_ends_with_the_bits_of_an_undisturbed_one(
    outcome: Outcome, tmp_path: Path
) -> None:
    code, said = outcome.mended
    assert code == 0, said
    federation = outcome.federation
    assert {site.status for record in federation.records() for site in record.sites.values()} == {"ok"}
    assert RunFolder(federation.run_folder).model.read_bytes() == federation.undisturbed(tmp_path)
