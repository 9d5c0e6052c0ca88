"""A study file: what is refused, what its hash covers, and which rounds it makes."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from tiny import content, one_stage, problems, study, write_study

from common.baseline import baseline_of
from common.components import BRANCH_PARTS
from common.errors import StudyError
from common.study import Study, Supervise, load_study, parse_study

CONFIGS = sorted(f for f in (Path(__file__).parents[2] / "configs").glob("*.yaml") if "ablation" not in f.name)
WHOLE = ["source_branch.encoder", "source_branch.decoder"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_study_is_valid(path: Path) -> None:
    study = load_study(path)
    assert parse_study(json.loads(study.resolved()), origin=path.name).hash() == study.hash()


def test_there_are_shipped_studies() -> None:
    assert "demo.yaml" in {path.name for path in CONFIGS}
    assert len({load_study(path).hash() for path in CONFIGS}) == len(CONFIGS)


@pytest.mark.parametrize(
    "place", [(), ("image",), ("network",), ("augmentation",), ("participation",), ("release",), ("stages", 0)]
)
def test_an_unknown_key_is_refused_and_named(place: tuple) -> None:
    broken = deepcopy(content(augmentation={}, participation={}, release={}))
    section = broken
    for key in place:
        section = section[key]
    section["stepps"] = 1
    assert "stepps" in problems(broken)


def test_an_unknown_key_of_a_task_is_refused_and_named() -> None:
    broken = content()
    broken["stages"][0]["source"]["stepps"] = 1
    assert "stepps" in problems(broken)


def test_all_problems_are_reported_at_once_with_their_places() -> None:
    text = problems(content(seed=-1, batch_size=0, image={"size": 33}, network={"norm": "batch"}))
    for place in ("my.yaml", "seed", "batch_size", "image.size", "network.norm"):
        assert place in text


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        "study",
        content(network={"features": [6] * 6, "norm": "group"}),  # four groups
        content(network={"features": [0] * 6}),
        content(stages=[]),
        content(name="../x"),
        content(image={"geometry": "letterbox"}),
        content(image={"geometry": "spacing", "spacing_mm": None}),
        content(initial={"encoder": {"file": "a", "sha256": "0" * 64}}),
        content(stages=[content()["stages"][0]] * 2),
        content(stages=[content()["stages"][0] | {"name": "score"}]),
        content(stages=[{"name": "idle", "rounds": 1}]),
        content(stages=[content()["stages"][0] | {"weights": {"head": {"source": 1}}}]),
        content(stages=[content()["stages"][0] | {"weights": {"projector": {"source": 1}}}]),
    ],
)
def test_a_study_that_cannot_run_is_refused(broken: object) -> None:
    assert "my.yaml is not a valid study" in problems(broken)


@pytest.mark.parametrize(
    ("role", "task", "trains"),
    [
        ("source", "self_supervise", ["projector"]),
        ("source", "self_train", ["target_branch"]),
        ("target", "supervise", ["source_branch"]),
        ("target", "infuse", ["infusion_head"]),
    ],
)
def test_a_task_for_the_other_role_is_refused(role: str, task: str, trains: list[str]) -> None:
    broken = content(stages=[{"name": "only", "rounds": 1, role: {"task": task, "trains": trains}}])
    assert f"`{task}`" in problems(broken)


@pytest.mark.parametrize("term", ["reconstruction_weight", "contrast_weight"])
def test_a_loss_of_next_to_nothing_is_refused_as_it_shows_the_sizes_of_gradients(term: str) -> None:
    def of(weight: float) -> dict[str, object]:
        target = {"task": "self_supervise", "trains": ["mim_decoder", "projector"], term: weight}
        return content(stages=[{"name": "only", "rounds": 1, "target": target}])

    assert f"{term}: expected 0 or at least 0.01, found 1e-05" in problems(of(1e-5)).replace("Value error, ", "")
    for weight in (0.0, 0.01):
        parse_study(of(weight), origin="tests")


@pytest.mark.parametrize(
    ("task", "trains"),
    [
        ("supervise", "projector"),
        ("supervise", "infusion_head"),
        ("supervise", "baseline.encoder"),
        ("infuse", "source_branch"),
        ("supervise", "branch"),
    ],
)
def test_a_task_cannot_train_what_is_not_its_own(task: str, trains: str) -> None:
    broken = content(stages=[{"name": "only", "rounds": 1, "source": {"task": task, "trains": [trains]}}])
    assert "cannot train" in problems(broken)


@pytest.mark.parametrize("task", ["supervise", "self_supervise", "self_train", "infuse"])
def test_a_training_task_that_trains_nothing_is_refused(task: str) -> None:
    role = "source" if task in ("supervise", "infuse") else "target"
    problems(content(stages=[{"name": "only", "rounds": 1, role: {"task": task, "trains": []}}]))


def test_a_branch_stands_for_both_of_its_halves() -> None:
    short = one_stage(source={"task": "supervise", "trains": ["source_branch"]})
    assert short.stages[0].source.trains == tuple(WHOLE)
    assert short.hash() == one_stage(source={"task": "supervise", "trains": WHOLE}).hash()


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"nowhere\.yaml"):
        load_study(tmp_path / "nowhere.yaml")
    for blob in (b"a: [", b"\xff\xfe\x00", b"a: b: c"):
        (tmp_path / "broken.yaml").write_bytes(blob)
        with pytest.raises(StudyError, match=r"broken\.yaml"):
            load_study(tmp_path / "broken.yaml")


def leaves(node: object, path: tuple = ()) -> Iterator[tuple[tuple, object]]:
    if isinstance(node, dict | list):
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(inner, (*path, key))
    else:
        yield path, node


def other_values(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value + 16, value / 2 + 0.013]
    return [0.3, "other", "group"]


#: Cannot change alone: the geometry needs its spacing, and a task's name decides its other keys.
TIED = {"geometry", "spacing_mm", "task", "trains"}


def changed(of: Study, path: tuple) -> Study | None:
    for value in other_values(dict(leaves(json.loads(of.resolved())))[path]):
        copy = json.loads(of.resolved())
        section = copy
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = value
        try:
            return parse_study(copy, origin="tests")
        except StudyError:
            continue
    return None


def test_the_hash_changes_with_every_single_setting() -> None:
    of = study(stages=[stage | {"weights": {}} for stage in content()["stages"][:3]])
    seen = {of.hash()}
    paths = [path for path, _ in leaves(json.loads(of.resolved())) if not TIED & set(path)]
    assert len(paths) > 50
    for path in paths:
        other = changed(of, path)
        assert other is not None, f"no other value found for {path}"
        assert other.hash() not in seen, path
        seen.add(other.hash())


def test_the_hash_changes_with_geometry_task_and_trained_components() -> None:
    spaced = [study(image={"size": 32, "spacing_mm": mm}) for mm in (0.5, 0.6)]
    tasks = [
        one_stage(target=task)
        for task in (
            {"task": "score"},
            {"task": "self_train", "trains": ["target_branch"]},
            {"task": "self_train", "trains": ["source_branch"]},
            {"task": "self_train", "trains": ["target_branch.encoder"]},
        )
    ]
    assert len({of.hash() for of in (study(), *spaced, *tasks)}) == 7


def turned(node: object) -> object:
    """The same content with the keys of every mapping in the contrary order."""
    if isinstance(node, dict):
        return {key: turned(node[key]) for key in reversed(node)}
    return [turned(inner) for inner in node] if isinstance(node, list) else node


def test_the_hash_does_not_depend_on_key_order_or_on_written_out_defaults() -> None:
    of = study()
    assert parse_study(turned(content()), origin="tests").hash() == of.hash()
    assert parse_study(json.loads(of.resolved()), origin="tests").hash() == of.hash()
    assert parse_study(yaml.safe_load(yaml.safe_dump(content())), origin="tests").hash() == of.hash()


def test_a_study_neither_evaluates_at_will_nor_begins_a_branch_anew_once_a_model_can_be_released() -> None:
    evaluating = {"name": "quality", "rounds": 200, "source": {"task": "evaluate"}, "target": {"task": "evaluate"}}
    with pytest.raises(StudyError, match="stage `quality`: `evaluate` is the engine's own closing round"):
        parse_study(content() | {"stages": [*content()["stages"], evaluating]}, origin="tests")
    supervise = {"task": "supervise", "trains": ["source_branch", "target_branch"]}
    late = {"name": "late", "rounds": 1, "begin": {"target_branch": "source_branch"}, "source": supervise}
    with pytest.raises(StudyError, match="stage `late`: a branch may begin as the other one only before"):
        parse_study(content() | {"stages": [*content()["stages"], late]}, origin="tests")
    begun = {"name": "learn", "rounds": 1, "begin": {"target_branch": "source_branch"}, "target": {"task": "distil"}}
    first = {"name": "first", "rounds": 1, "source": supervise}
    with pytest.raises(StudyError, match="stage `learn`: a branch may begin as the other one only before"):
        parse_study(content() | {"stages": [first, begun], "student": {}}, origin="tests")


def test_the_hash_covers_the_content_of_initial_weights_and_not_their_path() -> None:
    def given(file: str, sha256: str) -> Study:
        return study(initial={"baseline": {"file": file, "sha256": sha256}})

    assert given("/a/x", "0" * 64).hash() == given("b/y", "0" * 64).hash()
    assert given("/a/x", "0" * 64).hash() != given("/a/x", "1" * 64).hash()
    assert given("/a/x", "0" * 64).hash() != study().hash()


def test_weights_are_found_beside_the_study_file_wherever_its_path_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "studies").mkdir()
    write_study(tmp_path / "studies" / "own.yaml", initial={"baseline": {"file": "w.safetensors", "sha256": "0" * 64}})
    monkeypatch.chdir(tmp_path)
    weights = load_study(Path("studies/own.yaml")).initial["baseline"].file
    assert weights == tmp_path / "studies" / "w.safetensors"  # it is written into run folders, and read from there


def test_rounds_are_numbered_over_the_whole_study_and_within_their_stage() -> None:
    rounds = study().rounds()
    assert [r.index for r in rounds] == list(range(7))
    assert [(r.stage.name, r.step) for r in rounds] == [
        ("pretrain", 0),
        ("adapt", 0),
        ("refine", 0),
        ("refine", 1),
        ("infuse", 0),
        ("score", 0),
        ("evaluate", 0),
    ]


def test_the_learning_rate_runs_through_a_stage_once() -> None:
    of = one_stage(rounds=3, source={"task": "supervise", "trains": ["source_branch"], "steps": 4})
    task = of.stages[0].source
    progress = [r.learning_rate_progress(task, step) for r in of.rounds() for step in range(4)]
    assert progress == [i / 12 for i in range(12)]


def test_a_study_of_one_branch_has_nothing_to_score_or_evaluate() -> None:
    of = one_stage(rounds=3, source={"task": "supervise", "trains": ["source_branch"]})
    assert [r.stage.name for r in of.rounds()] == ["only"] * 3


def test_a_request_carries_what_its_task_needs() -> None:
    of = study()
    carried = {r.stage.name: (r.stage.source, r.stage.target) for r in of.rounds()}
    assert of.components_of(carried["pretrain"][0]) == tuple(WHOLE)
    assert set(of.components_of(carried["pretrain"][1])) == {"target_branch.encoder", "mim_decoder", "projector"}
    fused = {*BRANCH_PARTS, "infusion_head"}
    for stage in ("refine", "infuse", "score", "evaluate"):
        for task in carried[stage]:
            assert set(of.components_of(task)) == fused
    with_baseline = study(initial={"baseline": {"file": "x", "sha256": "0" * 64}})
    evaluate = with_baseline.rounds()[-1].stage.target
    assert set(with_baseline.components_of(evaluate)) == fused | {"baseline.encoder", "baseline.decoder"}


@pytest.mark.parametrize("rounds", [1, 3, 10])
def test_the_baseline_takes_as_many_supervised_steps_on_one_branch(rounds: int) -> None:
    of = load_study(CONFIGS[0].with_name("phantom.yaml"))
    steps = sum(
        r.stage.source.steps * len({name.split(".")[0] for name in r.stage.source.trains})
        for r in of.rounds()
        if isinstance(r.stage.source, Supervise)
    )
    baseline = baseline_of(of, rounds=rounds)
    (stage,) = baseline.stages
    assert steps <= stage.rounds * stage.source.steps < steps + rounds
    assert stage.rounds == rounds
    assert stage.source.trains == tuple(WHOLE)
    assert stage.target is None


def test_the_baseline_differs_in_nothing_but_name_and_stages() -> None:
    of = study(augmentation={"gamma": 0.1}, seed=5, initial={"baseline": {"file": "x", "sha256": "0" * 64}})
    kept = {"name", "stages", "initial"}
    baseline = baseline_of(of)
    assert baseline.model_dump(exclude=kept) == of.model_dump(exclude=kept)
    assert baseline.stages[0].source.learning_rate == of.stages[0].source.learning_rate
    assert baseline.hash() != of.hash()
    assert parse_study(json.loads(baseline.model_dump_json()), origin="tests") == baseline


FORK = [
    {"name": "supervise", "rounds": 2, "source": {"task": "supervise", "trains": ["source_branch"], "steps": 3}},
    {
        "name": "refine",
        "rounds": 3,
        "begin": {"target_branch": "source_branch"},
        "source": {"task": "supervise", "trains": ["target_branch"], "steps": 2},
        "target": {"task": "self_train", "trains": ["target_branch"]},
    },
]


def test_the_baseline_of_a_study_whose_branches_part_is_the_same_up_to_there() -> None:
    of = study(stages=FORK)
    first, second = baseline_of(of).stages
    assert first == of.stages[0]
    assert (second.rounds, second.source.steps, second.source.trains) == (3, 2, tuple(WHOLE))
    assert second.target is None
    assert not second.begin
    assert baseline_of(of).supervised_steps() == of.supervised_steps()


@pytest.mark.parametrize(
    "begin",
    [
        {"target_branch": "target_branch"},
        {"target_branch": "source_branch", "source_branch": "target_branch"},
        {"target_branch": "projector"},
    ],
)
def test_a_branch_begins_as_the_other_one_or_not_at_all(begin: dict[str, str]) -> None:
    with pytest.raises(StudyError, match="begin"):
        study(stages=[FORK[0], FORK[1] | {"begin": begin}])


def test_settings_that_are_off_leave_no_trace_in_the_hash_of_older_studies() -> None:
    newer = ("artefacts", "average", "smallest_part", "begin", "student")
    assert not any(f'"{name}"' in study().resolved() for name in newer)
    on = study(stages=FORK, smallest_part=0.2).resolved()
    assert '"begin":{"target_branch":"source_branch"}' in on
    assert '"smallest_part":0.2' in on


def test_a_study_without_labels_has_no_baseline() -> None:
    with pytest.raises(StudyError, match="supervise"):
        baseline_of(one_stage(target={"task": "self_supervise", "trains": ["projector"]}))
