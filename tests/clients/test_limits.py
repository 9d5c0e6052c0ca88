"""What a crafted study or a shrinking folder would get: refused before anything is trained, or not sent."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hospital import Stub, done, hospital, with_policy
from tiny import answer, one_stage, refusal, request, study, workers, write_site

from clients.data.site import Site, load_site
from clients.governance.approval_words import what_it_tells
from clients.governance.limits import LIMITS, settings_of
from clients.governance.policy import Policy
from clients.governance.proposal import propose
from clients.learning.training import Measured, Outcome, TaskContext
from clients.node.worker import Worker
from common.components import ROLES
from common.study import Study, load_study
from common.tasks import Supervise

ENCODER = ["target_branch.encoder", "mim_decoder", "projector"]
TODAY = date(2026, 5, 1)
CONFIGS = Path(__file__).parents[2] / "configs"


def masked(
    batch_size: int = 8,
    participation: Mapping[str, Any] | None = None,
    privacy: Mapping[str, Any] | None = None,
    **task: Any,
) -> Study:
    """A study of masked image modelling alone, within every default bound unless changed."""
    target = {"task": "self_supervise", "trains": ENCODER, "steps": 16} | task
    stages = [{"name": "only", "rounds": 2, "target": target}]
    more: dict[str, Any] = {"privacy": privacy, "network": {"features": [8] * 6, "norm": "group"}} if privacy else {}
    return study(batch_size=batch_size, participation=participation or {}, stages=stages, **more)


def beside(source: Mapping[str, Any], weights: Mapping[str, float] | None = None) -> Study:
    """The same, where source sites train the encoder too: their part moves what a target is sent."""
    target = {"task": "self_supervise", "trains": ENCODER, "steps": 16}
    own = {"task": "supervise", "trains": ["target_branch"], "steps": 16} | source
    stage = {"name": "only", "rounds": 2, "source": own, "target": target}
    return study(batch_size=8, stages=[stage | ({"weights": {ENCODER[0]: weights}} if weights else {})])


def warmed(steps: int) -> Study:
    """The same, where the target's own part never comes to its learning rate."""
    of = beside({})
    stage = of.stages[0]
    assert stage.target is not None
    return of.model_copy(
        update={
            "stages": (stage.model_copy(update={"target": stage.target.model_copy(update={"warmup_steps": steps})}),)
        }
    )


def before(source: Mapping[str, Any]) -> Study:
    """The same after a stage in which source sites alone train the encoder."""
    own = {"task": "supervise", "trains": ["target_branch"]} | source
    first = {"name": "first", "rounds": 1, "source": own}
    return study(batch_size=8, stages=[first, *masked().model_dump(mode="json")["stages"]])


def through(source: Mapping[str, Any]) -> Study:
    """A decoder's few steps behind an encoder that source sites move in the same round."""
    own = {"task": "supervise", "trains": ["target_branch.encoder"], "steps": 16} | source
    target = {"task": "self_train", "trains": ["target_branch.decoder"], "steps": 16}
    return study(batch_size=8, stages=[{"name": "only", "rounds": 2, "source": own, "target": target}])


#: A section that is there, and an epsilon that says nothing.
PROMISES_NOTHING = {"nominal_patients": 8, "noise_multiplier": 0.1, "epsilon_cap": 1e12}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = load_site(write_site(tmp_path_factory.mktemp("limits") / "east", "target"))
    return replace(site, config=site.config.model_copy(update={"policy": Policy()}))


def found(of: Study, site: Site) -> list[tuple[str, str]]:
    return [(f.code, f.where.rpartition(".")[2]) for f in propose(of, site, today=TODAY).findings]


def test_an_honest_study_is_within_the_default_bounds(site: Site) -> None:
    assert found(masked(), site) == []


@pytest.mark.parametrize(
    ("crafted", "key"),
    [
        (masked(batch_size=1, steps=1), "min_update_draws"),
        (masked(mask_ratio=0.99), "max_mask_ratio"),
        (masked(mask_block=32), "max_mask_side"),
        (masked(learning_rate=1.0), "max_learning_rate"),
        (masked().model_copy(update={"weight_decay": 1.0}), "max_weight_decay"),
        (masked(participation={"max_norm": 1e5}), "max_update_norm"),
        (beside({"steps": 100_000, "learning_rate": 0.02}), "max_travel"),
        (beside({"steps": 1000}), "max_travel_ratio"),
        (beside({}, {"source": 10.0, "target": 0.2}), "max_travel_ratio"),
        (before({"steps": 100_000, "learning_rate": 1.0}), "max_travel"),
        (through({"steps": 1000}), "max_travel_ratio"),
        (beside({}, {"source": 1.0, "target": 0.0}), "max_travel_ratio"),
        (warmed(10**12), "max_travel_ratio"),
        (masked(batch_size=1, steps=1, privacy=PROMISES_NOTHING), "min_update_draws"),
    ],
)
def test_a_study_made_to_copy_images_is_found_before_its_approval_and_refused_after_it(
    crafted: Study, key: str, site: Site
) -> None:
    assert ("policy-limit", key) in found(crafted, site)
    worker = Worker(site, crafted, bytes(32))
    assert refusal(worker.handle(request(crafted, "only", "target"))).code == "policy-limit"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("[!a]*.yaml")), ids=lambda file: file.stem)
def test_every_study_that_is_shipped_keeps_the_default_bounds(file: Path) -> None:
    of = load_study(file)
    for role in ROLES:
        assert list(Policy().findings(of, role, today=TODAY, sent_bytes={})) == []


def test_a_privacy_section_that_promises_nothing_lifts_no_bound_and_the_page_says_so(site: Site) -> None:
    weak = masked(privacy=PROMISES_NOTHING)
    strong = masked(privacy=PROMISES_NOTHING | {"epsilon_cap": 8.0})
    strict = replace(site, config=site.config.model_copy(update={"policy": Policy(privacy_required=True)}))
    assert ("privacy-required", "privacy_required") in found(weak, strict)
    assert "privacy-required" not in dict(found(strong, strict))
    said = what_it_tells(propose(weak, site, today=TODAY))
    assert "is not bounded in this study: its differential privacy is capped at an epsilon of 1e+12" in said
    assert "is bounded by its differential privacy" in what_it_tells(propose(strong, site, today=TODAY))
    own = replace(site, config=site.config.model_copy(update={"policy": Policy(epsilon_cap=20.0)}))
    assert own.config.policy.bounded(weak)  # by the hospital's own word


def test_an_epsilon_at_a_large_delta_is_refused(site: Site) -> None:
    large = masked(privacy=PROMISES_NOTHING | {"epsilon_cap": 4.0, "delta": 1e-3})
    assert ("privacy-delta", "max_delta") in found(large, site)
    worker = Worker(site, large, bytes(32))
    assert refusal(worker.handle(request(large, "only", "target"))).code == "privacy-delta"
    own = replace(site, config=site.config.model_copy(update={"policy": Policy(max_delta=1e-3)}))
    assert "privacy-delta" not in dict(found(large, own))


@pytest.mark.parametrize(("steps", "warmup"), [(40, 5), (2, 5), (1, 0), (6, 5), (3, 10**12)])
def test_what_a_warm_up_leaves_of_the_rate_is_what_the_site_takes(steps: int, warmup: int) -> None:
    task = Supervise(trains=("source_branch.encoder",), steps=steps, warmup_steps=warmup)
    taken = [min(1.0, (step + 1) / (warmup + 1)) for step in range(steps)]
    assert task.warm_share == pytest.approx(sum(taken) / steps)


def test_many_rounds_that_only_measure_are_refused(site: Site) -> None:
    measures = {"name": "steady", "rounds": 10, "target": {"task": "score"}}
    of = study(batch_size=8, stages=[*masked().model_dump(mode="json")["stages"], measures])
    assert ("policy-limit", "max_score_rounds") in found(of, site)  # the closing one is the eleventh
    fewer = study(batch_size=8, stages=[*masked().model_dump(mode="json")["stages"], measures | {"rounds": 9}])
    assert "policy-limit" not in dict(found(fewer, site))


def test_every_bound_is_on_the_page_that_a_hospital_approves(site: Site) -> None:
    stages = propose(masked(), site, today=TODAY).stages
    shown = [limited.key for stage in stages for limited in stage.settings]
    assert shown == [limit.key for limit in LIMITS]  # the last one by the closing `score`
    assert all(key in Policy.model_fields for key in shown)


def test_a_setting_stands_on_the_page_once_beside_the_stages_that_have_it_so(site: Site) -> None:
    proposal = propose(masked(), site, today=TODAY)
    first = proposal.stages[0]
    other, *same = first.settings
    later = replace(first, stage="later", settings=(replace(other, value=other.value + 1), *same))
    listed = [(setting.key, stages) for setting, stages in replace(proposal, stages=(first, later)).settings().items()]
    assert listed[:2] == [(other.key, [first.stage]), (other.key, ["later"])]
    assert listed[2:] == [(setting.key, [first.stage, "later"]) for setting in same]


def test_who_was_really_drawn_counts_and_not_who_is_in_the_folder(pair: Sequence[Path]) -> None:
    of = one_stage(source={"task": "supervise", "trains": ["source_branch"], "steps": 1})  # four of six patients
    (north,) = workers(of, pair[:1])
    header, updates = answer(north, request(of, "only", "source"))
    assert updates
    assert header.metrics.keys() == {"foreground_fraction"}  # that is of all six; the loss was of four
    strict = Worker(with_policy(north.site, min_update_patients=5), of, bytes(32))
    assert refusal(strict.handle(request(of, "only", "source"))).code == "policy-patients"


def test_a_number_about_all_patients_stays_as_it_was_first_sent(
    tmp_path: Path, pair: Sequence[Path], stub: Stub
) -> None:
    of = one_stage(rounds=3, source={"task": "supervise", "trains": ["source_branch"], "steps": 2})
    north = hospital(tmp_path, load_site(pair[0]), of)
    seen = []
    for step, fraction in enumerate((0.104, 0.31, 0.32)):  # a patient came, and another
        stub.metrics = {"foreground_fraction": fraction, "loss": fraction}
        seen.append(done(north.answer(request(of, "only", "source", step=step))).metrics)
        north = north.reopened()
    assert [metrics["foreground_fraction"] for metrics in seen] == [0.1, 0.1, 0.1]
    assert [metrics["loss"] for metrics in seen] == [0.104, 0.31, 0.32]
    north.state.start_over(of.hash())
    assert done(north.reopened().answer(request(of, "only", "source"))).metrics["foreground_fraction"] == 0.1


def test_numbers_leave_with_few_digits(pair: Sequence[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    exact = {"foreground_fraction": 0.123456, "loss": 0.123456, "val_dice": 0.987654}

    def perform(context: TaskContext) -> Outcome:
        return Outcome({name: Measured(value, 1000) for name, value in exact.items()}, drawn=1000)

    of = one_stage(source={"task": "supervise", "trains": ["source_branch"], "steps": 2})
    (north,) = workers(of, pair[:1])
    monkeypatch.setattr("clients.node.worker.perform", perform)
    header, _ = answer(north, request(of, "only", "source"))
    assert header.metrics == {"foreground_fraction": 0.12, "loss": 0.123, "val_dice": 0.988}


def test_the_settings_of_a_task_without_training_are_none(pair: Sequence[Path]) -> None:
    of = study()
    evaluate = of.rounds()[-1].stage.target
    assert evaluate is not None
    assert list(settings_of(of, evaluate, Policy())) == []
