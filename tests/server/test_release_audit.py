"""A card says what an audit of this very model found, or that there was none; another model's audit is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from finished import Finished
from tiny import Remembered

from common.audit_record import AuditRecord
from common.messages import digest
from common.release import CARD, RELEASE, SIGNATURE, WEIGHTS, find_release
from common.run_folder import RunFolder
from common.signing import read_public_key
from common.simulated import simulated_coordinator_key
from crossprobe import main
from server.audit_card import audited
from server.release import export_release
from server.run import run_study


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(finished.run, tmp_path / "run"))


@pytest.fixture
def record(finished: Finished) -> dict[str, Any]:
    """An audit of the finished run: of two sites, whose names and counts must not get into a card."""

    def images(site: str, rebuilt: int, *, noise: float | None = None, lifted: bool = True) -> dict[str, Any]:
        row = {"site": site, "attack": "gates", "patients": 8, "noise": noise, "rounds": 4, "correlation": 0.9}
        return row | {"answer": "x", "other": 0.5, "lifted": lifted, "rebuilt": rebuilt, "drawn": 32}

    def members(site: str, auc: float) -> dict[str, Any]:
        row = {"site": site, "attack": "loss", "members": 48, "non_members": 16, "auc": auc}
        return row | {"auc_ci95": [auc - 0.15, auc + 0.15], "tpr": 0.1, "tpr_ci95": [0.04, 0.35]}

    return {
        "command": "crossprobe audit --sites /secret/north",
        "study_sha256": finished.study.hash(),
        "weights_sha256": digest((finished.run / RELEASE / WEIGHTS).read_bytes()),
        "reconstruction": [
            images("north", 24),
            images("east", 3),
            images("north", 0, noise=0.1),
            images("north + east + south", 12) | {"summed": 3, "drawn": 96},
        ],
        "membership": [members("north", 0.52), members("east", 0.61)],
        "numbers": [
            {"site": "north", "number": "foreground_fraction", "attacked": 8, "told": told, "cohorts": not told}
            for told in (0, 5)
        ],
    }


def released(run: Path, tmp_path: Path, record: object, *more: str) -> int:
    (tmp_path / "audit.json").write_text(json.dumps(record))
    return main(["study", "release", str(run), "--audit", str(tmp_path / "audit.json"), *more])


def test_without_an_audit_the_card_says_so(finished: Finished) -> None:
    assert "**Not audited.**" in (finished.run / RELEASE / CARD).read_text()


def test_the_card_has_the_worst_sites_figures_with_their_intervals_and_no_site(
    run: Path, tmp_path: Path, record: dict[str, Any]
) -> None:
    assert released(run, tmp_path, record) == 0
    card = (find_release(run) / CARD).read_text()
    assert "**Not audited.**" not in card
    assert "| plain | all refused | gates: 24 of 32 [58, 87 %] |" in card
    assert "| differential privacy, noise 0.1 | all refused | gates: 0 of 32 [0, 11 %] |" in card
    assert "| secure aggregation | all refused | gates: 12 of 96 [7, 21 %] |" in card
    assert "| loss | 0.61 [0.46, 0.76] | 10 [4, 35] |" in card
    assert "`foreground_fraction`, by the difference of two studies: told of 0 of 8" in card
    assert "It found nothing that it counts as a failure" in card
    for said in ("north", "east", "/secret", "48"):
        assert said not in card.partition("## What an audit found")[2].partition("## What was not shown")[0]
    out = tmp_path / "passed-on"
    assert main(["study", "release", str(run), "--out", str(out)]) == 0
    assert (out / CARD).read_text() == card


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"study_sha256": "0" * 64}, "is not of this model: expected study"),
        ({"weights_sha256": "0" * 64}, "is not of this model: expected weights"),
        ({"weights_sha256": None}, "found none"),
        ({"membership": [{"attack": "loss", "auc": 1.5}]}, "is no record of an audit: membership.0"),
        ({"numbers": [{"number": "x |\n**Safe.**", "attacked": 1, "told": 0}]}, "numbers.0.number"),
        ({"reconstruction": "none"}, "is no record of an audit: reconstruction"),
    ],
)
def test_an_audit_of_another_model_or_with_words_of_its_own_changes_nothing(
    change: dict[str, Any],
    said: str,
    run: Path,
    tmp_path: Path,
    record: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (run / RELEASE / CARD).read_bytes()
    assert released(run, tmp_path, record | change) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "crossprobe audit --sites" in error
    assert (run / RELEASE / CARD).read_bytes() == before


def test_a_signed_release_is_signed_again_with_its_audit_or_not_changed(
    run: Path, tmp_path: Path, record: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "signing"
    assert main(["study", "keygen", str(keys)]) == 0
    assert main(["study", "release", str(run), "--keys", str(keys)]) == 0
    before = (run / RELEASE / SIGNATURE).read_bytes()
    assert released(run, tmp_path, record) == 1
    assert "Give --keys" in capsys.readouterr().err
    assert "**Not audited.**" in (run / RELEASE / CARD).read_text()
    assert released(run, tmp_path, record, "--keys", str(keys)) == 0
    assert (run / RELEASE / SIGNATURE).read_bytes() != before
    find_release(run, read_public_key(keys / "coordinator.pub"))


def test_a_simulations_release_takes_its_audit_without_keys(
    run: Path, tmp_path: Path, record: dict[str, Any], finished: Finished
) -> None:
    key = simulated_coordinator_key(finished.study)
    export_release(RunFolder(run), key=key)
    assert released(run, tmp_path, record) == 0
    find_release(run, key.public_key())
    assert "**Not audited.**" not in (run / RELEASE / CARD).read_text()


@pytest.mark.parametrize("signed", [True, False])
def test_a_finished_run_that_is_resumed_keeps_its_audited_card_and_signature(
    signed: bool, run: Path, tmp_path: Path, record: dict[str, Any], finished: Finished
) -> None:
    keys = tmp_path / "signing"
    assert main(["study", "keygen", str(keys)]) == 0
    assert released(run, tmp_path, record, *(["--keys", str(keys)] if signed else [])) == 0
    before = {path.name: path.read_bytes() for path in (run / RELEASE).iterdir()}
    assert (SIGNATURE in before) == signed
    run_study(finished.study, Remembered(finished.transport), run, resume=True)
    assert {path.name: path.read_bytes() for path in (run / RELEASE).iterdir()} == before
    (run / RELEASE / CARD).write_text("**Safe.**")  # one that somebody changed is made anew
    run_study(finished.study, Remembered(finished.transport), run, resume=True)
    assert "**Not audited.**" in (find_release(run) / CARD).read_text()


def test_an_audit_whose_numbers_belong_to_nobody_says_that_none_was_attacked(
    run: Path, tmp_path: Path, record: dict[str, Any]
) -> None:
    record["numbers"] = [number | {"cohorts": False} for number in record["numbers"]]
    assert released(run, tmp_path, record) == 0
    assert "Numbers that leave beside the updates were not attacked." in (find_release(run) / CARD).read_text()


def test_each_threshold_fails_the_audit_by_itself(record: dict[str, Any]) -> None:
    assert list(AuditRecord.model_validate(record).failures()) == []
    image, member, number = record["reconstruction"][1], record["membership"][1], record["numbers"][0]
    for change in (
        {"reconstruction": [image | {"lifted": False}]},
        {"membership": [member | {"auc_ci95": [0.51, 0.7]}]},
        {"numbers": [number | {"told": 1}]},
    ):
        failed = AuditRecord.model_validate(record | change)
        (failure,) = failed.failures()
        assert f"**It failed:**\n- {failure}" in audited(failed)
