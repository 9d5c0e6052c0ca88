"""The audit's attacks work where nothing stops them: without that, a table of failed attacks would say nothing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finished import Finished
from hospital import with_policy
from reconstruction import reconstruct
from tiny import one_stage, workers, write_site

from clients.data.site import Site, load_site
from clients.governance.policy import Policy
from clients.released import load_model
from common.errors import RunError
from common.metric import Metric
from common.study import Study
from crossprobe import main
from server.run import run_study
from simulations.audit.ask import Refused, ask, hostile_study
from simulations.audit.audit import Attack, attack_on_sums, open_worker, rebuilt_patients, run_attack
from simulations.audit.gates import GatedTrap, TileTrap
from simulations.audit.membership import area_under_curve, measured, membership, true_positives
from simulations.audit.numbers import AREA, numbers
from simulations.audit.page import publish, tables
from simulations.audit.shadows import calibrated, shadow_membership
from simulations.audit.similarity import Match
from simulations.audit.supervised_gates import GatedSuperviseTrap
from simulations.audit.trap import MimTrap, SuperviseTrap
from simulations.local import LocalTransport

ROOT = Path(__file__).parents[2]
PRIVACY = {"nominal_patients": 6, "noise_multiplier": 1.0, "delta": 1e-3, "epsilon_cap": 1e6}
SMALL: dict[str, Any] = {"size": 32, "learning_rate": 0.01, "network": {"features": (16, 16, 32, 64, 64, 64)}}


@pytest.fixture(scope="module")
def east(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target site."""
    return write_site(tmp_path_factory.mktemp("audit") / "east", "target", patients={"train": 12, "test": 5})


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source site."""
    return write_site(tmp_path_factory.mktemp("audit") / "north", "source")


def untouched(folder: Path) -> Site:
    """A site whose policy nobody changed; that of tiny sites has no floors."""
    site = load_site(folder)
    return replace(site, config=site.config.model_copy(update={"policy": Policy()}))


def test_one_reply_of_one_unlabelled_patient_is_that_patients_image(east: Path) -> None:
    study = hostile_study("self_supervise", rounds=3)
    found = reconstruct(open_worker(east, study, lifted=True), study, rounds=3)
    assert min(match.correlation for match in found) > 0.9
    assert len(rebuilt_patients(found)) >= 2


def test_one_reply_of_one_labelled_patient_is_that_patients_image(north: Path) -> None:
    study = hostile_study("supervise", rounds=3, **SMALL)
    found = reconstruct(open_worker(north, study, lifted=True), study, rounds=3)
    assert min(match.correlation for match in found) > 0.9
    assert min(match.correlation - match.other for match in found) > 0.05


def test_gates_take_single_images_out_of_a_batch_of_eight(east: Path) -> None:
    study = hostile_study("self_supervise", batch_size=8, size=32, network={"features": (16, 16, 32, 64, 256, 16)})
    worker = open_worker(east, study, lifted=True)
    assert len(rebuilt_patients(reconstruct(worker, study))) == 0
    assert len(rebuilt_patients(reconstruct(worker, study, trap=GatedTrap(study)))) >= 4


def test_gates_take_single_labelled_images_out_of_a_batch_of_eight(tmp_path: Path) -> None:
    north = write_site(tmp_path / "north", "source", patients={"train": 12, "val": 5, "test": 5})

    def asked(patients: int) -> Study:
        network = {"features": (32, 32, 32, 64, 64, 256)}
        return hostile_study("supervise", batch_size=patients, **SMALL | {"network": network})

    study = asked(8)
    worker = open_worker(north, study, lifted=True)
    assert len(rebuilt_patients(reconstruct(worker, study, trap=GatedSuperviseTrap(study)))) >= 3
    many = asked(128)
    with pytest.raises(Refused, match="implausible-weights"):
        reconstruct(open_worker(untouched(north), many), many, trap=GatedSuperviseTrap(many))


def test_gates_of_weights_that_look_trained_take_tiles_and_a_policy_that_nobody_changed_refuses_them(
    tmp_path: Path,
) -> None:
    many = untouched(write_site(tmp_path / "many", "target", patients={"train": 40, "test": 5}))
    network = {"features": (16, 16, 32, 64, 256, 16)}

    def asked(patients: int) -> Study:
        return hostile_study("self_supervise", batch_size=patients, size=32, mask_ratio=0.8, network=network)

    few = asked(32)
    assert len(rebuilt_patients(reconstruct(open_worker(many, few, lifted=True), few, trap=TileTrap(few)))) >= 2
    for study, code in ((few, "policy-limit"), (asked(128), "implausible-weights")):
        with pytest.raises(Refused, match=code):
            reconstruct(open_worker(many, study), study, trap=TileTrap(study))


@pytest.mark.parametrize("task", ["self_supervise", "supervise"])
def test_noise_hides_the_image_even_where_one_patient_is_drawn(task: str, east: Path, north: Path) -> None:
    study = hostile_study(task, rounds=3, privacy=PRIVACY, **SMALL)
    worker = open_worker(north if task == "supervise" else east, study, lifted=True)
    assert max(match.correlation for match in reconstruct(worker, study, rounds=3)) < 0.5


@pytest.mark.parametrize("task", ["self_supervise", "supervise"])
def test_a_policy_that_nobody_changed_refuses_a_study_made_for_the_trap(task: str, east: Path, north: Path) -> None:
    study = hostile_study(task, **SMALL)
    worker = open_worker(untouched(north if task == "supervise" else east), study)
    with pytest.raises(Refused) as refusal:
        reconstruct(worker, study)
    assert refusal.value.code == "policy-limit"


def test_the_audit_tells_both_the_refusal_and_what_the_limits_held_back(east: Path, north: Path) -> None:
    trap = Attack("trap", hostile_study("self_supervise"), rounds=1, trap=MimTrap)
    found = run_attack(trap, untouched(east))
    assert (found.answer, found.lifted, found.drawn) == ("policy-limit", True, 1)
    assert found.correlation > 0.9
    many = Attack("trap", hostile_study("supervise", batch_size=128, **SMALL), rounds=1, trap=SuperviseTrap)
    found = run_attack(many, untouched(north))
    assert (found.answer, found.lifted, found.rebuilt) == ("implausible-weights", True, 0)


def test_a_private_round_for_which_nobody_was_drawn_gives_an_attack_nothing(
    east: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = hostile_study("self_supervise", rounds=12, privacy=PRIVACY, **SMALL)
    attack = Attack("trap", study, rounds=12, trap=MimTrap)
    answers: list[str] = []

    def told(*arguments: Any) -> Any:
        try:
            found = ask(*arguments)
        except Refused as refusal:
            answers.append(refusal.code)
            raise
        answers.append("answered")
        return found

    monkeypatch.setattr("simulations.audit.audit.ask", told)
    found = run_attack(attack, untouched(east))
    assert {"round-spent", "answered"} <= set(answers), "twelve draws of a patient or so: some of nobody, some of one"
    assert found.rebuilt == 0
    assert "nobody" not in found.answer
    lifted = answers[1:]  # the first one is the refusal of the site's own policy
    assert len(lifted) == 12
    empty = lifted.index("round-spent")
    monkeypatch.setattr(Study, "rounds", lambda self, rounds=Study.rounds: rounds(self)[empty:])
    nothing = run_attack(replace(attack, rounds=1), untouched(east))
    assert "nobody was drawn" in nothing.answer
    assert (nothing.correlation, nothing.rebuilt) == (0.0, 0)


def test_gates_take_single_images_out_of_the_mean_of_three_sites(tmp_path: Path) -> None:
    """Secure aggregation hides whose image it is, not the image."""
    patients = {"train": 12, "test": 5}
    folders = [write_site(tmp_path / f"e{seed}", "target", seed=seed, patients=patients) for seed in range(3)]
    sites = [load_site(folder) for folder in folders]
    found = run_attack(attack_on_sums(sites[0], 1, 0), *sites)
    assert (found.summed, found.drawn) == (3, 24)
    assert found.rebuilt >= 4


def test_a_mean_that_is_like_everybody_is_nobody() -> None:
    assert rebuilt_patients([Match(0.99, "a", 0.985), Match(0.94, "b", 0.1), Match(0.97, "c", 0.9)]) == {"c"}


def test_a_number_of_one_patient_comes_out_of_two_studies_unless_a_site_keeps_its_cohorts(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_site(tmp_path / "north", "source", patients={"train": 12, "calibrate": 5, "val": 5, "test": 12})
    north, model = with_policy(load_site(folder)), load_model(finished.run)
    monkeypatch.setattr("simulations.audit.numbers.ATTACKED", 3)
    monkeypatch.setitem(AREA, "batch_size", 8)
    monkeypatch.setattr(Metric, "rounded", lambda self, value: value)  # all digits leave
    found = list(numbers(north, model, seed=0))
    names = ["foreground_fraction"] * 2 + ["infusion/dice/mean"] * 2
    assert [(row.number, row.answer, row.attacked) for row in found] == [(name, "answered", 3) for name in names]
    assert [row.cohorts for row in found] == [True, False] * 2
    kept, nothing_kept = found[::2], found[1::2]
    assert max(row.error for row in nothing_kept) < 1e-6
    assert sum(row.told for row in nothing_kept) > 0
    assert sum(row.told for row in kept) == 0
    assert all(row.error > row.guess / 3 for row in kept)  # what comes out is the mean of a cohort


def test_numbers_that_a_policy_keeps_back_cannot_be_told(east: Path, finished: Finished) -> None:
    found = list(numbers(untouched(east), load_model(finished.run), seed=0))
    assert found
    for row in found:  # five test patients, and four are too few
        assert (row.number, row.answer, row.attacked, row.told) == ("infusion/dice/mean", "withheld", 0, 0)


def test_membership_measures_are_those_of_the_literature() -> None:
    inside, outside = np.array([3.0, 2.0, 1.0, 0.0]), np.array([0.0, 1.5])
    assert area_under_curve(inside, outside) == (2 * 4 + 2 + 1) / 2 / 8 + 0 / 8
    assert true_positives(inside, outside) == 0.5
    many = np.arange(200.0)
    assert true_positives(many, many) == 0.01  # at 200 others, two may be wrong


def test_a_score_is_compared_with_that_of_models_with_and_without_the_same_patient() -> None:
    hard = {f"p{number}": 10.0 * number for number in range(8)}  # what every model says of a patient
    drawn = [{"p0", "p1", "p2", "p3"}, {"p4", "p5", "p6", "p7"}]
    shadows = [{patient: score + (patient in members) for patient, score in hard.items()} for members in drawn]
    attacked = {patient: score + (patient in {"p1", "p6"}) for patient, score in hard.items()}
    found = calibrated(attacked, shadows, drawn)
    assert {patient for patient, score in found.items() if score > 0} == {"p1", "p6"}
    assert set(found.values()) == {0.5, -0.5}


def test_shadow_models_tell_members_whose_difficulty_hides_them(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is the set of those it was trained on here; each of them looks a little easier than he is."""
    site = load_site(north)
    everyone = site.patients("train") + site.patients("test")
    hard = dict(zip(everyone, np.random.default_rng(0).normal(scale=10, size=len(everyone)), strict=True))
    seeds = []

    def trained(study: object, sites: Sequence[Site], seed: int) -> Any:
        seeds.append(seed)
        assert set(sites[0].patients("train") + sites[0].patients("test")) == set(everyone)
        assert sites[0].patients("val") == site.patients("val")
        return SimpleNamespace(members=set(sites[0].patients("train")))

    def scores_of(model: Any, site: Site) -> dict[str, dict[str, float]]:
        return {"loss": {patient: hard[patient] + (patient in model.members) for patient in everyone}}

    monkeypatch.setattr("simulations.audit.shadows._trained", trained)
    monkeypatch.setattr("simulations.audit.shadows.scores_of", scores_of)
    model: Any = SimpleNamespace(study=None, members=set(site.patients("train")))
    (found,) = shadow_membership(model, [site], 2, seed=0)
    assert (found.attack, found.auc, found.members) == ("loss, shadow models", 1.0, len(site.patients("train")))
    assert measured(site, "loss", scores_of(model, site)["loss"], 0).auc < 0.9
    assert len(set(seeds)) == 4


def test_shadow_models_are_of_the_models_own_study(north: Path, tmp_path: Path) -> None:
    of = one_stage(source={"task": "supervise", "trains": ["source_branch"], "steps": 2})
    run_study(of, LocalTransport(workers(of, [north])), tmp_path / "run")
    found = shadow_membership(load_model(tmp_path / "run"), [load_site(north)], 1, seed=0)
    assert [row.attack for row in found] == ["loss, shadow models", "entropy, shadow models"]


def test_the_tables_of_the_document_are_those_of_the_records() -> None:
    records = [json.loads(file.read_text("utf-8")) for file in sorted((ROOT / "docs/audit").glob("*.json"))]
    assert len(records) >= 2
    document = (ROOT / "docs/privacy.md").read_text("utf-8")
    assert f"-->\n{tables(records).rstrip()}\n<!-- end -->" in document


def test_a_document_without_a_place_for_the_tables_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("words\n")
    with pytest.raises(RunError, match="expected a line <!-- audit -->"):
        publish(tmp_path / "page.md", tmp_path)
    assert (tmp_path / "page.md").read_text() == "words\n"


def test_what_an_audit_could_not_write_is_told_before_it_attacks(
    north: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("simulations.audit.audit.audit_sites", lambda *_, **__: pytest.fail("it attacked"))
    (tmp_path / "file").touch()
    words = ["audit", "--sites", str(north)]
    assert main([*words, "--out", str(tmp_path / "a.json"), "--publish", str(tmp_path / "none.md")]) == 1
    assert "none.md" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "file" / "a.json")]) == 1
    assert "cannot make the folder" in capsys.readouterr().err


def test_other_records_beside_an_audits_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- audit -->\nold\n<!-- end -->\n")
    (tmp_path / "summary.json").write_text("{}")
    publish(tmp_path / "page.md", tmp_path)
    assert (tmp_path / "page.md").read_text() == "<!-- audit -->\n\n<!-- end -->\n"


def test_a_site_without_other_patients_tells_nothing_of_membership(north: Path, tmp_path: Path) -> None:
    of = one_stage(source={"task": "supervise", "trains": ["source_branch"], "steps": 2})
    run_study(of, LocalTransport(workers(of, [north])), tmp_path / "run")
    site, model = load_site(north), load_model(tmp_path / "run")
    alone = replace(site, frames=tuple(frame for frame in site.frames if frame.split != "test"))
    assert list(membership(model, alone, seed=0)) == []
    assert list(shadow_membership(model, [alone], 1, seed=0)) == []
