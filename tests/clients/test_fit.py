"""A folder that is too small for a study: told before the approval, and never an endless draw."""

import json
from datetime import date
from pathlib import Path

import pytest
import torch
import yaml
from hospital import with_policy
from tiny import study, write_site, write_study

from clients.data.dataset import Dataset
from clients.data.findings import SiteFolderError
from clients.data.site import Site, load_site
from clients.governance.fit import kept_back, misfits
from clients.governance.proposal import propose
from common.components import Role
from common.privacy import Privacy
from crossprobe import main

NO_CALIBRATE = {"train": 6, "calibrate": 0, "val": 5, "test": 5}


def test_drawing_from_a_split_without_patients_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    site = load_site(write_site(tmp_path / "north", "source", patients=NO_CALIBRATE))

    with pytest.raises(SiteFolderError, match="expected calibrate patients") as caught:
        Dataset(site, study()).draw("calibrate", 4, torch.Generator())
    assert [finding.code for finding in caught.value.findings] == ["no-patients"]


def test_a_source_without_calibrate_patients_cannot_approve_a_study_that_needs_them(tmp_path: Path) -> None:
    site = load_site(write_site(tmp_path / "north", "source", patients=NO_CALIBRATE))

    proposal = propose(study(), site, today=date(2026, 1, 1))

    assert [finding.code for finding in proposal.findings] == ["few-patients"]
    assert "infuse (stage infuse)" in proposal.findings[0].message
    whole = load_site(write_site(tmp_path / "whole", "source"))
    assert list(misfits(study(), whole)) == []


@pytest.mark.parametrize(
    ("role", "patients", "kept"),
    [
        ("source", {"train": 6, "calibrate": 5, "val": 5, "test": 5}, set()),
        ("source", {"train": 6, "calibrate": 5, "val": 1, "test": 5}, {("refine", "val_dice")}),
        ("source", {"train": 6, "calibrate": 1, "val": 5, "test": 5}, {("infuse", "mean_weight")}),
        ("source", {"train": 6, "calibrate": 5, "val": 1, "test": 5}, {("score", "val_dice")}),
        ("target", {"train": 6, "val": 5, "test": 2}, {("evaluate", "infusion")}),
        ("target", {"train": 2, "val": 5, "test": 5}, {("pretrain", "reconstruction_loss"), ("score", "score")}),
    ],
)
def test_numbers_that_too_few_patients_stand_behind_are_named_by_stage(
    tmp_path: Path, role: Role, patients: dict[str, int], kept: set[tuple[str, str]]
) -> None:
    site = load_site(write_site(tmp_path / "north", role, patients=patients))

    found = {(part.stage, number) for part in kept_back(study(), site) for number in part.numbers}

    assert bool(found) == bool(kept)
    assert kept <= found
    assert ("adapt", "val_dice") not in found  # no model is chosen there, so none is measured
    assert kept_back(study(), with_policy(site, min_patients=1)) == []


def test_the_check_of_a_folder_tells_what_a_study_would_lack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_site(tmp_path / "north", "source", patients={"train": 6, "calibrate": 0, "val": 1, "test": 5})
    file = write_study(tmp_path / "study.yaml")

    assert main(["site", "check", str(folder)]) == 0
    assert main(["site", "check", str(folder), "--study", str(file)]) == 1
    shown = capsys.readouterr()
    assert "few-patients" in shown.err
    assert "val_dice would not be sent: 1 val patients" in shown.out

    assert main(["site", "check", str(folder), "--study", str(file), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert "val_dice" in {number for part in found["kept_back"] for number in part["numbers"]}
    assert found["splits"]["train"] == {"patients": 6, "frames": 6, "labelled": 6}
    assert found["splits"]["calibrate"] == {"patients": 0, "frames": 0, "labelled": 0}


def test_the_check_of_a_folder_tells_what_its_policy_refuses_of_a_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = write_site(tmp_path / "north", "source"), write_study(tmp_path / "study.yaml")
    assert main(["site", "check", str(folder), "--study", str(file)]) == 0
    settings = yaml.safe_load((folder / "site.yaml").read_text())
    settings["policy"] |= {"max_rounds": 1, "max_learning_rate": 1e-6}
    (folder / "site.yaml").write_text(yaml.safe_dump(settings))
    assert main(["site", "check", str(folder)]) == 0
    assert main(["site", "check", str(folder), "--study", str(file)]) == 1
    told = capsys.readouterr().err
    assert "policy-rounds" in told
    assert "policy-limit" in told


def test_a_folder_below_the_floor_of_an_update_is_found_before_the_approval(tmp_path: Path) -> None:
    site = load_site(write_site(tmp_path / "north", "source"))
    assert list(misfits(study(), with_policy(site, min_update_patients=5))) == []
    (finding,) = misfits(study(), with_policy(site, min_update_patients=6))
    assert (finding.code, "calibrate" in finding.message) == ("few-patients", True)


def test_a_delta_that_one_published_patient_would_keep_is_a_finding_without_the_number_of_patients(site: Site) -> None:
    patients = len(site.patients("train"))
    for delta, found in ((0.099 / patients, False), (0.101 / patients, True)):
        privacy = Privacy.model_construct(delta=delta)
        of = study().model_copy(update={"privacy": privacy})
        findings = [finding for finding in misfits(of, site) if finding.code == "large-delta"]
        assert bool(findings) == found
        assert not any(str(patients) in str(finding).replace(f"{delta:g}", "") for finding in findings)
