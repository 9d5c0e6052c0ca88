"""What a policy declares and refuses."""

from datetime import date
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from site_folder import good_site
from tiny import POLICY, study

from clients.data.site import check_site
from clients.governance.policy import Policy
from common.components import Role
from common.tasks import TASKS


@pytest.mark.parametrize(
    ("policy", "n", "declared"),
    [
        (Policy(), 37, 37),
        (Policy(), 0, 0),
        (Policy(patients_rounded_to=10), 37, 30),
        (Policy(patients_rounded_to=10), 3, 10),
        (Policy(patients_cap=20), 37, 20),
    ],
)
def test_the_declared_patient_count_is_rounded_down_and_capped(policy: Policy, n: int, declared: int) -> None:
    assert policy.declared_patients(n) == declared


def test_a_site_tells_no_more_patients_than_a_study_counts_it_for() -> None:
    capped = study(participation={"patients_cap": 20})
    assert [Policy(patients_rounded_to=10).declared_in(capped, n) for n in (0, 17, 35)] == [0, 10, 20]
    assert Policy(patients_cap=15).declared_in(capped, 35) == 15
    uncapped = study(participation={"patients_cap": None})
    assert uncapped.hash() == study(participation={}).hash()  # older studies keep theirs


def test_a_policy_refuses_unknown_keys_and_numbers_without_sense() -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate({"min_patient": 3})
    with pytest.raises(ValidationError):
        Policy(min_patients=0)
    with pytest.raises(ValueError, match="0 or more"):
        Policy().declared_patients(-1)


STUDY = study()


def codes(policy: Policy, role: Role = "source", sent: int = 0) -> list[str]:
    sizes = {stage.name: sent for stage in STUDY.stages}
    return [f.code for f in policy.findings(STUDY, role, today=date(2026, 5, 1), sent_bytes=sizes)]


def test_the_default_policy_allows_all_of_the_contract() -> None:
    assert codes(Policy(**POLICY), "source") == codes(Policy(**POLICY), "target") == []
    names = {name for own in TASKS.values() for name in own.metrics}
    assert Policy().permitted(dict.fromkeys(names, 0.0)).keys() == names


@pytest.mark.parametrize(
    ("content", "role", "expected"),
    [
        ("allowed_tasks: [supervise, score, evaluate]", "source", ["policy-task"]),
        ("allowed_tasks: []", "target", ["policy-task"] * 6),
        ("allowed_components: [source_branch, infusion_head]", "source", ["policy-component"] * 2),
        ("allowed_components: [target_branch.encoder, mim_decoder, projector]", "target", ["policy-component"]),
        ("max_rounds: 6", "source", ["policy-rounds"]),
        ("max_round_bytes: 99", "source", ["policy-bytes"] * 4),
        ("privacy_required: true", "source", ["privacy-required"]),
        ("epsilon_cap: 3.0", "target", ["privacy-required"]),
        ("expires: 2026-04-30", "target", ["policy-expired"]),
        ("expires: 2026-05-01", "target", []),
        (
            "{allowed_tasks: [], max_rounds: 1, expires: 2020-01-01}",
            "source",
            ["policy-expired", "policy-rounds", *["policy-task"] * 6],
        ),
    ],
)
def test_everything_that_a_study_asks_and_the_policy_does_not_allow_is_found_at_once(
    content: str, role: Role, expected: list[str]
) -> None:
    assert codes(Policy.model_validate(POLICY | yaml.safe_load(content)), role, sent=100) == expected


def test_a_name_stands_for_all_that_continue_it() -> None:
    policy = Policy(allowed_metrics=("infusion/dice", "loss", "baseline"))
    asked = ("infusion/dice/mean", "infusion/iou/mean", "loss", "baseline/hd95/low", "baseline/iou/mean", "score")
    assert list(policy.permitted(dict.fromkeys(asked, 1.0))) == [asked[0], asked[2], asked[3], asked[4]]


@pytest.mark.parametrize(
    "content",
    [
        "allowed_tasks: [supervise, train]",
        "allowed_tasks: supervise",
        "allowed_components: [target]",
        "allowed_components: [baseline]",
        "allowed_metrics: [dice]",
        "allowed_metrics: [infusion/dic]",
        "max_rounds: 0",
        "max_rounds: many",
        "max_round_bytes: -1",
        "privacy_required: 1",
        "epsilon_cap: 0.0",
        "epsilon_cap: .inf",
        "epsilon_cap: .nan",
        "expires: soon",
        "allow_tasks: []",
    ],
)
def test_a_policy_with_a_value_that_means_nothing_is_refused(content: str) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate(yaml.safe_load(content))


def test_the_hash_of_a_policy_changes_with_every_key() -> None:
    others = {
        "min_patients": 6,
        "min_update_patients": 6,
        "min_update_draws": 6,
        "max_mask_ratio": 0.7,
        "max_mask_side": 0.5,
        "max_learning_rate": 0.1,
        "max_weight_decay": 0.2,
        "max_update_norm": 9.0,
        "max_travel": 2.0,
        "max_travel_ratio": 2.0,
        "max_score_rounds": 2,
        "max_delta": 1e-6,
        "min_summed_sites": 3,
        "implausible_weights": "report",
        "patients_rounded_to": 2,
        "patients_cap": 9,
        "allowed_tasks": ("score",),
        "allowed_components": ("projector",),
        "allowed_metrics": ("loss",),
        "max_rounds": 9,
        "max_round_bytes": 9,
        "privacy_required": True,
        "epsilon_cap": 1.0,
        "expires": date(2030, 1, 1),
        "approvals_needed": 2,
    }
    assert others.keys() == Policy.model_fields.keys()
    hashes = {Policy().hash(), *(Policy.model_validate({key: value}).hash() for key, value in others.items())}
    assert len(hashes) == len(others) + 1
    assert Policy(min_patients=5).hash() == Policy().hash()


def test_a_site_with_an_unknown_policy_key_is_not_opened(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north")
    (folder / "site.yaml").write_text("name: north\nrole: source\npolicy: {max_round: 3, allowed_tasks: [x]}\n")
    site, findings = check_site(folder)
    assert site is None
    assert {finding.code for finding in findings} == {"unknown-key", "wrong-value"}
