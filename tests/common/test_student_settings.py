"""A study's student: which studies may have one, when it learns, and what it needs to learn from."""

import pytest
from tiny import content, distilling, problems, study

from common.baseline import baseline_of
from common.components import COMPONENTS, STUDENT


def distil(**more: object) -> dict:
    return {"name": "distil", "rounds": 1, "target": {"task": "distil"}} | more


INITIAL = {name: {"file": "x", "sha256": "0" * 64} for name in ("source_branch", "target_branch", "infusion_head")}


def test_only_a_study_that_distils_has_a_student() -> None:
    assert set(study().components) == set(COMPONENTS) - set(STUDENT)
    assert set(distilling().components) == set(COMPONENTS)
    assert "student" not in study().predictors
    assert "student" in distilling().predictors
    assert baseline_of(distilling()).student is None
    for of, has in ((study(), False), (distilling(), True)):
        evaluate = of.rounds()[-1].stage
        assert evaluate.target is not None
        assert (set(STUDENT) <= set(of.components_of(evaluate.target))) == has
        assert any(name.startswith("student/") for name in of.metrics_of(evaluate, "target")) == has


def test_the_student_learns_once_it_is_known_which_model_is_released() -> None:
    stages = [r.stage.name for r in distilling().rounds()]
    assert stages == ["pretrain", "adapt", "refine", "refine", "infuse", "score", "distil", "evaluate"]


def test_a_finished_model_can_be_given_a_student_by_itself() -> None:
    of = study(student={}, stages=[distil()], initial=INITIAL)
    assert [r.stage.name for r in of.rounds()] == ["score", "distil", "evaluate"]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"student": {}}, "go together"),
        ({"stages": [*content()["stages"], distil()]}, "go together"),
        ({"student": {}, "stages": [*content()["stages"][:3], distil(), content()["stages"][3]]}, "come last"),
        ({"student": {}, "stages": [*content()["stages"], distil(source={"task": "score"})]}, "beside `distil`"),
        ({"student": {}, "stages": [distil()]}, "found nothing of source_branch.decoder"),
        (
            {"student": {}, "stages": [distil()], "initial": {"baseline": INITIAL["source_branch"]}},
            "target_branch",
        ),
        (
            {"image": {"size": 40, "geometry": "letterbox", "spacing_mm": None}, "student": {}}
            | {"network": {"kind": "residual_unet"}, "stages": [*content()["stages"], distil()]},
            "the student's stride, 16",
        ),
        ({"student": {"kind": "forest"}, "stages": [*content()["stages"], distil()]}, "student"),
        ({"initial": {"student": INITIAL["source_branch"]}}, "unknown component"),
    ],
)
def test_a_student_that_could_learn_nothing_is_refused(changes: dict, wrong: str) -> None:
    assert wrong in problems(content(**changes))
