"""YAML and JSON with two meanings, or without end, are refused with their line; nothing else is."""

from datetime import date
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from tiny import write_study

from clients.data.site import SiteConfig, check_site
from common.errors import StudyError
from common.plain_words import problems
from common.strict_text import MAX_DEPTH, TextError, parse_json, parse_yaml
from common.study import Study, load_study

BOMB = "a: &a [x, x]\n" + "\n".join(f"{b}: &{b} [*{a}, *{a}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))

BAD_YAML = [
    ("doubled", "name: a\nrole: b\nname: c", 3, "found it in line 1 too"),
    ("doubled-below", "policy:\n  epsilon_cap: 1\n  epsilon_cap: 2", 3, "`epsilon_cap` once"),
    ("doubled-flow", "a: {b: 1, b: 2}", 1, "`b` once"),
    ("doubled-quoted", "a: 1\n'a': 2", 2, "`a` once"),
    ("merge", "a: 1\n<<: {a: 2}", 2, "expected text as key"),
    ("alias", "a: &x 1\nb: *x", 2, "an alias"),
    ("bomb", BOMB, 2, "an alias"),
    ("digits", f"seed: {'9' * 5000}", 1, "digits, found 5000"),
    ("digits-float", f"seed: {'9' * 5000}.5", 1, "digits, found 5002"),
    ("infinite", "a: 1\nlr: .inf", 2, "a finite number"),
    ("overflow", "lr: 1.0e+999", 1, "a finite number"),
    ("nan", "lr: .nan", 1, "a finite number"),
    ("octal", "seed: 010", 1, "a decimal number"),
    ("sexagesimal", "port: 1:30", 1, "a decimal number"),
    ("no-day", "expires: 2026-13-45", 1, "a date that exists"),
    ("key-date", "2026-01-01: x", 1, "expected text as key"),
    ("key-bool", "yes: x", 1, "expected text as key, found `yes`"),
    ("key-list", "? [a]\n: x", 1, "expected text as key"),
    ("deep-flow", "a: " + "[" * 100_000, 1, "levels"),
    ("deep-block", "\n".join(" " * n + "a:" for n in range(200)), MAX_DEPTH, "levels"),
    ("python", "a: !!python/object/apply:os.system [ls]", 1, "not YAML"),
    ("control", "a: 1\nb: \x07", 2, "control character"),
    ("latin", b"a: 1\nb: \xff", 2, "found byte 0xff"),
    ("cut", "a: [1", 1, "not YAML"),
    ("two", "a: 1\n---\nb: 2", 2, "not YAML"),
    ("tag-int", "seed: !!int abc", None, "leave tags out"),
    ("tag-empty", "seed: !!int ''", None, "leave tags out"),
    ("tag-bool", "seed: !!bool x", None, "leave tags out"),
    ("tag-time", "seed: !!timestamp x", None, "leave tags out"),
    ("long", "a: " + "x" * 300_000, None, "bytes, found"),
]


@pytest.mark.parametrize(("text", "line", "reason"), [bad[1:] for bad in BAD_YAML], ids=[bad[0] for bad in BAD_YAML])
def test_yaml_that_has_no_single_meaning_is_refused_with_file_and_line(
    text: str | bytes, line: int | None, reason: str
) -> None:
    with pytest.raises(TextError, match=r"^study\.yaml") as caught:
        parse_yaml(text if isinstance(text, bytes) else text.encode(), origin="study.yaml")
    assert reason in caught.value.reason
    assert caught.value.line in (line, line and line + 1)


@pytest.mark.parametrize("text", [bad[1] for bad in BAD_YAML], ids=[bad[0] for bad in BAD_YAML])
def test_a_study_and_a_site_yaml_go_through_the_same_loader(tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "site.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(StudyError, match=r"site\.yaml"):
        load_study(file)
    assert "invalid-yaml" in {finding.code for finding in check_site(tmp_path)[1]}


def test_what_people_write_is_read_as_ever(tmp_path: Path) -> None:
    text = "\ufeffa: 1\nb: [1.5, -2.0e-4, true, null, 'é']\nc: {d: 2027-01-31}\n"
    assert parse_yaml(text.encode(), origin="x") == {
        "a": 1,
        "b": [1.5, -2.0e-4, True, None, "é"],
        "c": {"d": date(2027, 1, 31)},
    }
    for file in sorted(Path(__file__).parents[2].joinpath("configs").glob("*.yaml")):
        assert parse_yaml(file.read_bytes(), origin=file.name) == yaml.safe_load(file.read_text())


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', "[" * 100_000, '{"a": NaN}', f'{{"a": {"9" * 5000}}}', b"\xff", '{"a": 1'],
    ids=["doubled", "deep", "nan", "digits", "latin", "cut"],
)  # fmt: skip
def test_json_that_this_software_did_not_write_is_a_plain_error(text: str | bytes) -> None:
    with pytest.raises(TextError, match=r"^state\.json"):
        parse_json(text, origin="state.json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"batchsize": 4}, "batchsize: expected one of augmentation, batch_size,"),
        ({"batchsize": 4}, "found batchsize; did you mean batch_size?"),
        ({"batch_size": 0}, "batch_size: expected at least 1, found 0"),
        ({"batch_size": "many"}, "batch_size: expected a whole number, found 'many'"),
        ({"name": "Our Study"}, "name: expected lower-case letters, digits and hyphens"),
        ({"image": {"size": 65}}, "image.size: expected a multiple of 8, found 65"),
        ({"image": {"size": 64, "geometry": "warp"}}, "image.geometry: expected one of 'spacing', 'letterbox'"),
        ({"stages": []}, "stages: expected at least 1"),
        (
            {"stages": [{"name": "x", "rounds": 1, "source": {"task": "learn"}}]},
            "stages.0.source: expected task to be one of supervise,",
        ),
        (
            {"stages": [{"name": "x", "rounds": 1, "source": {}}]},
            "stages.0.source: expected the key task, one of supervise,",
        ),
        (
            {"stages": [{"name": "x", "rounds": 1, "source": {"task": "infuse", "step": 2}}]},
            "stages.0.source.step: expected one of average, learning_rate, shrinkage, steps, strength,",
        ),
        ({"stages": [{"name": "x"}]}, "stages.0.rounds: expected this key, found none"),
        ({"seed": 1.5}, "seed: expected a whole number, found 1.5"),
        ({"flips_at_inference": "perhaps"}, "flips_at_inference: expected true or false, found 'perhaps'"),
    ],
)
def test_a_wrong_setting_is_told_in_plain_words(tmp_path: Path, change: dict[str, object], expected: str) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(write_study(tmp_path / "study.yaml", **change))
    assert expected in str(caught.value)
    for raw in ("Extra inputs", "Input should", "Field required", "Value error", "permitted"):
        assert raw not in str(caught.value)


def _models(model: type[BaseModel]) -> set[type[BaseModel]]:
    found, new = set(), {model}
    while new:
        found |= new
        new = {part for m in new for f in m.model_fields.values() for part in _parts(f.annotation)} - found
    return found


def _parts(annotation: object) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {part for argument in getattr(annotation, "__args__", ()) for part in _parts(argument)}


@pytest.mark.parametrize("value", ["x", -1, 1e30, [], {}, [1, "x"], {"x": 1}, True, None, 1.5, date(2026, 1, 1)])
@pytest.mark.parametrize("model", [Study, SiteConfig])
def test_no_value_at_any_key_brings_the_libraries_own_words(model: type[BaseModel], value: object) -> None:
    seen = 0
    for part in _models(model):
        for name in part.model_fields:
            try:
                part.model_validate({name: value})
            except ValidationError as error:
                for problem in problems(error, part):
                    seen += 1
                    assert problem.kind in ("unknown-key", "missing-key", "wrong-value")
                    assert "something else" not in problem.text, f"{part.__name__}.{name}: {problem.text}"
                    assert "nput should" not in problem.text
    assert seen > 10
