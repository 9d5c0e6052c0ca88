"""What a policy declares and refuses."""

import pytest
from pydantic import ValidationError

from clients.policy import Policy


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


def test_a_policy_refuses_unknown_keys_and_numbers_without_sense() -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate({"min_patient": 3})
    with pytest.raises(ValidationError):
        Policy(min_patients=0)
    with pytest.raises(ValueError, match="0 or more"):
        Policy().declared_patients(-1)
