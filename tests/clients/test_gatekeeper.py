"""The worker as a hospital runs it: nothing leaves that is not approved, logged, within policy and new."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from finished import Finished
from hospital import SECRET, Hospital, Stub, done, hospital, with_policy
from tiny import one_stage, other_tensors, refusal, request, same, study, write_site

from clients.data.site import Site, load_site
from clients.governance.approval import approval_of, approve, withdraw
from clients.governance.ledger import verify
from clients.governance.proposal import propose
from clients.governance.renewal import renew
from clients.governance.state import State
from clients.learning.training import TaskContext
from clients.node.gatekeeper import Gatekeeper
from clients.node.refusals import refusal as refused
from clients.node.worker import Worker
from common.components import FUSED
from common.errors import ContractError
from common.messages import EnrolReply, EnrolRequest, TaskReply, TaskRequest, pack, unpack
from common.networks import initial_networks
from common.run_folder import RunFolder
from common.simulated import simulated_secret
from server import history
from server.algorithm import init
from server.rounds import run_round
from server.run import run_study
from server.state import Participant
from simulations.local import LocalTransport

STUDY = study()
OTHER = study(name="other")
PRETRAIN, ADAPT, REFINE = (request(STUDY, stage, "source") for stage in ("pretrain", "adapt", "refine"))
ENROL = pack(EnrolRequest(study=STUDY.hash()))
STRANGE = pack(TaskReply(study="0" * 64, round=0, stage="x", task="score", request="0" * 64, metrics={}))


NOTHING_ELSE = pack(refused("not-approved"))


def test_a_study_is_told_one_count_of_patients_however_often_it_is_approved(tmp_path: Path, stub: Stub) -> None:
    def grown(patients: int) -> Site:
        patients_of = {"train": patients, "calibrate": 5, "val": 5}
        return load_site(write_site(tmp_path / f"of-{patients}", "source", name="north", patients=patients_of))

    def count(of: Hospital) -> int:
        header = of.answer(ENROL)
        assert isinstance(header, EnrolReply)
        return header.patients

    north = hospital(tmp_path / "state", grown(6), STUDY)
    assert count(north) == 6
    more = north.reopened(grown(9))
    approve(more.state, more.site, STUDY, by="anna")
    assert count(more) == 6
    withdraw(more.state, STUDY.hash(), by="Anna Berg")
    approve(more.state, more.site, STUDY, by="anna")
    assert count(more) == 6
    more.state.start_over(STUDY.hash())
    approve(more.state, more.site, STUDY, by="anna")
    assert count(more) == 6
    assert propose(STUDY, more.site, today=date(2026, 5, 1), declared=6).patients == 6
    approve(more.state, more.site, OTHER, by="anna")
    assert approval_of(more.state, OTHER.hash()).patients == 9  # type: ignore[union-attr]


@pytest.mark.parametrize("payload", [ENROL, PRETRAIN, other_tensors(PRETRAIN), b"", b"\0" * 50, PRETRAIN[:-3], STRANGE])
def test_before_approval_the_answer_is_not_approved_and_nothing_else(
    payload: bytes, tmp_path: Path, site: Site, stub: Stub
) -> None:
    fresh = hospital(tmp_path / "state", site)
    assert fresh.worker.handle(payload) == NOTHING_ELSE
    assert refusal(NOTHING_ELSE).ledger_head is None
    assert stub.ran == []


def test_an_approval_is_of_one_study_only(tmp_path: Path, site: Site, stub: Stub) -> None:
    north = hospital(tmp_path / "state", site, OTHER)
    assert north.worker.handle(PRETRAIN) == NOTHING_ELSE
    assert north.worker.handle(ENROL) == NOTHING_ELSE
    assert north.code(b"") == "not-a-message"
    assert north.code(STRANGE) == "not-a-request"
    assert done(north.answer(request(OTHER, "pretrain", "source"))).study == OTHER.hash()


def test_two_studies_of_one_name_and_seed_do_not_train_on_the_same_draws(
    tmp_path: Path, site: Site, stub: Stub
) -> None:
    """On the same ones the difference of two sums would be the one hospital's that is in the first alone."""
    again = study(participation={"deadline_s": 17.0})
    reseeded = study(seed=3)
    north = hospital(tmp_path / "state", site, STUDY, again, reseeded)
    drawn: list[bytes] = []
    stub.during = lambda context: drawn.append(context.secret)
    for of in (STUDY, again, reseeded):
        done(north.answer(request(of, "pretrain", "source")))
    assert drawn[0] == drawn[2] == SECRET  # as in a simulation with this secret
    assert drawn[1] != SECRET
    north = north.reopened()
    for of in (again, STUDY):
        done(north.answer(request(of, "adapt", "source")))
    assert drawn[3:] == [drawn[1], SECRET]
    withdraw(north.state, STUDY.hash(), by="Anna Berg")
    done(north.answer(request(again, "refine", "source")))
    assert drawn[5] == drawn[1]


def test_an_approval_given_or_withdrawn_counts_from_the_next_message(north: Hospital, stub: Stub) -> None:
    assert withdraw(north.state, STUDY.hash(), by="Anna Berg")
    assert north.worker.handle(PRETRAIN) == NOTHING_ELSE
    approve(north.state, north.site, STUDY, by="anna")
    assert north.code(PRETRAIN) == "ok"


def test_a_study_withdrawn_while_its_task_runs_sends_nothing(north: Hospital, stub: Stub) -> None:
    stub.during = lambda context: withdraw(north.state, STUDY.hash(), by="Anna Berg") and None
    assert north.worker.handle(PRETRAIN) == NOTHING_ELSE
    assert stub.ran == ["supervise"]
    approve(north.state, north.site, STUDY, by="anna")
    other = request(STUDY, "pretrain", "source", prior=0.5)
    assert north.code(other) == "round-answered"  # patients were looked at once for this round
    stub.during = lambda context: None
    assert north.code(PRETRAIN) == "ok"


def test_a_task_that_came_to_nothing_can_be_asked_again_as_it_was_and_not_otherwise(
    north: Hospital, stub: Stub
) -> None:
    """Else a coordinator whose bounds refuse every update could look at the same patients as often as it likes."""

    def fail(context: TaskContext) -> None:
        raise ContractError("absurd-norm", "as with a bound of next to nothing")

    stub.during = fail
    assert north.code(PRETRAIN) == "absurd-norm"
    assert north.code(request(STUDY, "pretrain", "source", prior=0.5)) == "round-answered"
    north = north.reopened()
    assert north.code(request(STUDY, "pretrain", "source", prior=0.5)) == "round-answered"
    stub.during = lambda context: None
    assert north.code(PRETRAIN) == "ok"


@pytest.mark.parametrize("stage", ["score", "evaluate"])
def test_weights_that_no_training_makes_measure_nothing_either(stage: str, north: Hospital, stub: Stub) -> None:
    stub.metrics = {}
    made = {name: np.full_like(x, 0.5) for name, x in initial_networks(STUDY).export(FUSED).items()}
    assert north.code(request(STUDY, stage, "source", made)) == "implausible-weights"
    assert stub.ran == []
    assert north.code(request(STUDY, stage, "source")) == "ok"


def test_an_approval_is_void_when_the_policy_or_the_software_changes(
    north: Hospital, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert north.reopened(with_policy(north.site, min_patients=4)).worker.handle(PRETRAIN) == NOTHING_ELSE
    north = north.reopened()
    monkeypatch.setattr("clients.governance.approval.software_version", lambda: "0.1.7")
    assert north.code(ENROL) == "ok"
    monkeypatch.setattr("clients.governance.approval.software_version", lambda: "0.2.0")
    assert north.worker.handle(ENROL) == NOTHING_ELSE


def test_an_approval_is_void_once_site_yaml_is_another_even_before_a_restart(tmp_path: Path, stub: Stub) -> None:
    folder = write_site(tmp_path / "north", "source")
    north = hospital(tmp_path / "state", load_site(folder), STUDY)
    assert north.code(ENROL) == "ok"
    with (folder / "site.yaml").open("a") as file:
        file.write("  max_rounds: 1\n")  # in the policy, which stands last
    assert north.worker.handle(ENROL) == NOTHING_ELSE
    north = north.reopened(load_site(folder))
    assert north.worker.handle(ENROL) == NOTHING_ELSE
    (folder / "site.yaml").unlink()
    assert north.worker.handle(ENROL) == NOTHING_ELSE


def test_a_damaged_approval_is_none(north: Hospital, stub: Stub) -> None:
    path = north.state.approval(STUDY.hash())
    for content in (b"", b"{}", b"[]", path.read_bytes().replace(b'"weight_decay": 0.0001', b'"weight_decay": 0.1')):
        path.write_bytes(content)
        assert north.worker.handle(PRETRAIN) == NOTHING_ELSE


def test_a_task_gives_the_same_tensors_as_in_a_simulation(north: Hospital) -> None:
    header, updates = unpack(north.worker.handle(PRETRAIN))
    plain, expected = unpack(Worker(north.site, STUDY, SECRET).handle(PRETRAIN))
    assert same(updates, expected)
    assert done(header).metrics == done(plain).metrics
    assert done(plain).ledger_head is None


def test_a_repeated_request_gets_the_same_bytes_and_is_not_trained_again(north: Hospital, stub: Stub) -> None:
    first = north.worker.handle(PRETRAIN)
    assert north.worker.handle(PRETRAIN) == first
    assert north.reopened().worker.handle(PRETRAIN) == first
    assert stub.ran == ["supervise"]


def test_an_old_round_and_another_request_for_an_answered_round_are_refused(north: Hospital, stub: Stub) -> None:
    assert north.code(PRETRAIN) == "ok"
    assert north.code(other_tensors(PRETRAIN)) == "round-answered"
    assert north.code(ADAPT) == "ok"
    north = north.reopened()
    assert north.code(PRETRAIN) == "old-round"
    assert north.code(REFINE) == "ok"
    assert stub.ran == ["supervise"] * 3


def test_a_round_whose_task_failed_can_be_asked_again(north: Hospital, stub: Stub) -> None:
    def fail(context: TaskContext) -> None:
        raise OSError("/data/ward/anna-schmidt.png")

    stub.during = fail
    assert north.code(PRETRAIN) == "task-failed"
    stub.during = lambda context: None
    assert north.code(PRETRAIN) == "ok"


def test_a_study_that_starts_over_has_other_randomness(north: Hospital) -> None:
    first = unpack(north.worker.handle(PRETRAIN))[1]
    north.state.start_over(STUDY.hash())
    second = unpack(north.worker.handle(PRETRAIN))[1]
    assert not same(first, second)
    assert north.state.answered(STUDY.hash()).start == 1
    assert unpack(north.reopened().worker.handle(PRETRAIN))[1].keys() == second.keys()


def test_a_damaged_record_of_rounds_answers_nothing(north: Hospital, stub: Stub) -> None:
    north.worker.handle(PRETRAIN)
    path = north.state.folder / "answered" / STUDY.hash()
    path.write_bytes(path.read_bytes()[:-1])
    assert north.code(PRETRAIN) == "state-failed"
    assert stub.ran == ["supervise"]


def test_the_declared_patients_stay_as_approved(tmp_path: Path, site: Site) -> None:
    north = hospital(tmp_path / "state", site, STUDY)
    grown = Site(site.config, site.folder, tuple(frame for frame in site.frames if "train-0" not in frame.patient))
    assert len(grown.patients("train")) == len(site.patients("train")) - 1
    for of in (site, grown):
        header = north.reopened(of).answer(ENROL)
        assert isinstance(header, EnrolReply)
        assert header.patients == len(site.patients("train"))


TODAY = datetime.now(UTC).date()


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ({"expires": TODAY - timedelta(days=1)}, "policy-expired"),
        ({"expires": TODAY + timedelta(days=1)}, "ok"),
        ({"allowed_tasks": ("infuse",)}, "policy-task"),
        ({"allowed_components": ("source_branch.decoder", "target_branch")}, "policy-component"),
        ({"max_rounds": 6}, "policy-rounds"),
        ({"max_rounds": 7}, "ok"),
        ({"max_round_bytes": 1000}, "policy-bytes"),
        ({"privacy_required": True}, "privacy-required"),
        ({"epsilon_cap": 8.0}, "privacy-required"),
    ],
)
def test_what_the_policy_does_not_allow_is_refused_by_its_code(
    policy: dict, code: str, tmp_path: Path, site: Site, stub: Stub
) -> None:
    north = hospital(tmp_path / "state", with_policy(site, **policy), STUDY)
    assert north.code(PRETRAIN) == code
    assert north.state.answered(STUDY.hash()).round == (0 if code in ("ok", "policy-bytes") else -1)
    assert bool(stub.ran) == (code in ("ok", "policy-bytes"))


def test_a_metric_that_is_not_allowed_is_left_out_and_the_ledger_shows_what_was_sent(
    tmp_path: Path, site: Site, stub: Stub
) -> None:
    stub.metrics = {"loss": 0.5, "foreground_fraction": 0.25, "val_dice": 0.75}
    north = hospital(tmp_path / "state", with_policy(site, allowed_metrics=("val_dice",)), STUDY)
    assert done(north.answer(PRETRAIN)).metrics == {"val_dice": 0.75}
    assert north.ledger()[-1]["metrics"] == {"val_dice": 0.75}


def test_no_reply_names_a_patient_a_file_or_a_folder(north: Hospital, site: Site) -> None:
    words = {str(north.state.folder), str(site.folder), "site.yaml", ".png"} | {f.patient for f in site.frames}
    missing = one_stage(name="none", target={"task": "score"})
    for payload in (ENROL, PRETRAIN, PRETRAIN[:-1], other_tensors(PRETRAIN), request(missing, "none", "target")):
        reply = north.worker.handle(payload)
        assert not [word for word in words if word.encode() in reply]


def test_the_secret_is_neither_in_the_ledger_nor_in_a_reply_nor_readable_by_others(north: Hospital) -> None:
    reply = north.worker.handle(PRETRAIN)
    for content in (reply, north.state.ledger.read_bytes()):
        assert SECRET not in content
        assert SECRET.hex().encode() not in content
    assert (north.state.folder / "secret").stat().st_mode & 0o777 == 0o600
    assert isinstance(unpack(PRETRAIN)[0], TaskRequest)


def test_nothing_in_the_state_folder_is_readable_by_others(north: Hospital, stub: Stub) -> None:
    north.state.ledger.touch(0o644)
    assert north.reopened().code(PRETRAIN) == "ok"
    files = {path.name: path.stat().st_mode & 0o777 for path in north.state.folder.rglob("*") if path.is_file()}
    assert {"secret", "ledger.jsonl", "accountant.json", STUDY.hash(), f"{STUDY.hash()}.json"} <= files.keys()
    assert set(files.values()) == {0o600}
    north.state.ledger.unlink()
    renew(north.state)
    assert north.reopened().code(ENROL) == "ok"
    assert north.state.ledger.stat().st_mode & 0o777 == 0o600


class Guarded(LocalTransport):
    """Calls guarded workers directly."""

    def __init__(self, hospitals: Sequence[Hospital]) -> None:
        self.workers = {own.site.config.name: own.worker for own in hospitals}  # type: ignore[misc, assignment]


def test_a_run_over_guarded_workers_gives_the_same_model_and_its_history_holds_their_heads(
    finished: Finished, pair: Sequence[Path], tmp_path: Path
) -> None:
    hospitals = []
    for folder in pair:
        own = load_site(folder)
        state = State.create(tmp_path / own.config.name, simulated_secret(STUDY, own.config.name))
        approve(state, own, STUDY, by="anna")
        hospitals.append(Hospital(own, state, Gatekeeper(own, state)))
    run_study(STUDY, Guarded(hospitals), tmp_path / "run")
    assert RunFolder(tmp_path / "run").model.read_bytes() == RunFolder(finished.run).model.read_bytes()
    for own in hospitals:
        heads = [r.sites[own.site.config.name].ledger_head for r in history.read(tmp_path / "run")]
        proven = [verify(own.state.ledger, head).proven for head in heads]
        assert proven == [3 + 2 * i for i in range(len(proven))]
        lines = own.state.ledger.read_bytes().splitlines(keepends=True)
        own.state.ledger.write_bytes(b"".join(lines[:-2]))
        assert not verify(own.state.ledger).damage
        assert verify(own.state.ledger, heads[-1]).damage


def test_a_refused_round_leaves_its_head_in_the_history(pair: Sequence[Path], tmp_path: Path, stub: Stub) -> None:
    of = one_stage(source={"task": "supervise", "trains": ["source_branch"], "steps": 1})
    own = hospital(tmp_path / "state", with_policy(load_site(pair[0]), max_round_bytes=1000), of)
    participants = {"north": Participant("source", 6, False)}
    state = init(of, participants, initial_networks(of).export(of.components))
    _, record = run_round(of, state, of.rounds()[0], Guarded([own]))
    seen = record.sites["north"]
    assert (seen.status, record.counted) == ("refused", False)
    assert seen.detail.startswith("policy-bytes")
    assert verify(own.state.ledger, seen.ledger_head).proven == 1
