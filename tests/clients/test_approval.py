"""A hospital's yes: what it reads first, what is recorded, and what a dry run shows before it."""

import json
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest
import yaml
from hospital import hospital, with_policy
from tiny import one_stage, same, study, write_site, write_study

import crossprobe
from clients.data.site import Site, load_site
from clients.governance.approval import approval_of, valid_approvals
from clients.governance.decisions import decisions
from clients.governance.disclosure import explain
from clients.governance.proposal import Proposal, propose
from clients.governance.state import State
from common.components import COMPONENTS
from common.fingerprint import fingerprint
from common.messages import Refusal, TaskReply, digest, unpack
from common.signing import make_keys, text_of
from common.study import Study
from common.tasks import TASKS, TrainingTask, all_metrics
from common.version import approved_line

STUDY = study()
TODAY = date(2026, 5, 1)


@pytest.fixture(scope="module")
def sites(pair: Sequence[Path]) -> tuple[Site, Site]:
    north, east = (load_site(folder) for folder in pair)
    return north, east


@pytest.fixture
def files(tmp_path: Path, pair: Sequence[Path]) -> tuple[Path, list[str]]:
    """A study file, and the options that name site and state."""
    State.create(tmp_path / "state")
    options = ["--site", str(pair[0]), "--state", str(tmp_path / "state")]
    return write_study(tmp_path / "study.yaml"), options


def run(*words: str | Path) -> int:
    return crossprobe.main(["site", *map(str, words)])


def test_the_key_beside_the_study_is_approved_and_its_fingerprint_told(
    files: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study_file, options = files
    own, other = (make_keys(tmp_path / name) for name in ("own", "other"))
    beside = tmp_path / "coordinator.pub"
    beside.write_text(text_of(own) + "\n")

    def approved_key(*more: str) -> tuple[str | None, str]:
        assert run("approve", study_file, *options, "--yes", "--json", *more) == 0
        approval = approval_of(State(tmp_path / "state"), STUDY.hash())
        assert approval is not None
        return json.loads(capsys.readouterr().out)["coordinator_key"], approval.coordinator

    assert approved_key() == (fingerprint(own), text_of(own))
    assert approved_key("--coordinator-key", str(tmp_path / "other" / "coordinator.pub")) == (
        fingerprint(other),
        text_of(other),
    )
    beside.write_text("ssh-rsa AAAA")  # never taken for none
    assert run("approve", study_file, *options, "--yes") == 1
    assert "holds no public signing key" in capsys.readouterr().err
    beside.unlink()
    assert run("approve", study_file, *options, "--yes") == 1
    assert "would take unsigned ones" in capsys.readouterr().err
    assert run("withdraw", study_file, *options[2:]) == 0
    capsys.readouterr()
    assert approved_key() == (None, "")
    assert run("approve", study_file, *options, "--yes") == 0
    assert "Requests need no signature: another hospital" in capsys.readouterr().out


def test_every_task_component_and_metric_of_the_contract_has_its_sentence() -> None:
    assert all(len(task.meaning) > 10 for task in TASKS.values())
    assert all(len(metric.meaning) > 10 for metric in all_metrics().values())
    assert len(explain(all_metrics())) < 40


def proposed(of: Study, site: Site) -> Proposal:
    return propose(of, site, today=TODAY)


def test_a_proposal_names_what_the_study_does_and_what_leaves(sites: tuple[Site, Site]) -> None:
    north, east = (proposed(STUDY, site) for site in sites)
    assert [(s.stage, s.rounds, s.task, s.steps) for s in north.stages] == [
        ("pretrain", 1, "supervise", 2),
        ("adapt", 1, "supervise", 2),
        ("refine", 2, "supervise", 2),
        ("infuse", 1, "infuse", 2),
        ("score", 1, "score", 0),
        ("evaluate", 1, "evaluate", 0),
    ]
    assert north.tensors.keys() == {*COMPONENTS[:4], "infusion_head"}
    assert east.tensors.keys() == {*COMPONENTS[:4], "mim_decoder", "projector"}
    assert north.tensors["infusion_head"]["infusion_head/log_temperature"] == (2,)
    assert north.patients == 6
    assert "infusion/dice/mean" in north.metrics
    assert not any("difference" in name or name.startswith("baseline") for name in north.metrics)
    assert north.findings == ()


def test_a_proposal_holds_all_that_real_replies_do(sites: tuple[Site, Site], tmp_path: Path) -> None:
    from clients.governance.dry_run import dry_run

    state, held = State.create(tmp_path / "state"), []
    for site in sites:
        sent = {m.what.split()[0]: m for m in dry_run(STUDY, site, state, tmp_path / site.config.name)}
        for stage in proposed(STUDY, site).stages:
            if stage.stage in sent:
                assert sent[stage.stage].bytes <= stage.sent_bytes <= 1.2 * sent[stage.stage].bytes + 1000
                assert sent[stage.stage].metrics.keys() <= set(stage.metrics)
                assert sent[stage.stage].tensors.keys() == set(stage.sends)
                held.append((site.config.role, stage.stage))
    trained = {"source": ("pretrain", "adapt", "refine", "infuse"), "target": ("pretrain", "refine")}
    assert {(role, stage) for role, stages in trained.items() for stage in stages} <= set(held)


def quorum(source: int, target: int) -> Study:
    return study(participation={"quorum": {"source": source, "target": target}})


def test_with_one_source_a_hospital_reads_that_its_own_model_reaches_every_target(sites: tuple[Site, Site]) -> None:
    north, east = sites
    assert "every target hospital receives your own model" in proposed(quorum(1, 1), north).warnings[0]
    assert "receives that hospital's own model" in proposed(quorum(1, 1), east).warnings[0]
    assert "every source hospital receives your own model" in proposed(quorum(1, 1), east).warnings[1]
    assert "at least 3 source hospitals are averaged" in proposed(quorum(3, 1), north).warnings[0]
    assert "subtract its own" in proposed(quorum(2, 1), north).warnings[0]
    assert proposed(quorum(0, 4), north).quorum == {"source": 1, "target": 4}


def test_a_study_that_does_not_fit_the_site_is_found(sites: tuple[Site, Site]) -> None:
    spaced = study(image={"size": 32, "spacing_mm": 0.5})
    assert [f.code for f in proposed(spaced, sites[0]).findings] == ["no-spacing"]
    only_source = one_stage(source={"task": "supervise", "trains": ["source_branch"], "steps": 1})
    assert [f.code for f in proposed(only_source, sites[1]).findings] == ["no-task"]
    strict = with_policy(sites[0], max_rounds=2, allowed_tasks=("supervise",), expires=date(2026, 4, 1))
    assert {f.code for f in proposed(STUDY, strict).findings} == {"policy-rounds", "policy-task", "policy-expired"}


def test_an_approval_records_who_when_and_what_it_is_bound_to(
    files: tuple[Path, list[str]], sites: tuple[Site, Site], capsys: pytest.CaptureFixture[str]
) -> None:
    file, options = files
    assert run("approve", file, *options, "--yes", "--by", "Anna") == 0
    shown = capsys.readouterr().out
    for word in (
        STUDY.hash(),
        "supervise",
        "conv_0.conv_0.conv.weight",
        "val_dice",
        "6 training patients",
        "own model",
    ):
        assert word in " ".join(shown.split()), word
    state = State(Path(options[-1]))
    approval = approval_of(state, STUDY.hash())
    assert approval is not None
    assert (approval.by, approval.study, approval.patients) == ("Anna", STUDY, 6)
    assert approval.when.endswith("+00:00")
    assert approval.policy_hash == sites[0].config.policy.hash()
    assert valid_approvals(state, sites[0].config).keys() == {STUDY.hash()}


def test_an_approval_keeps_its_own_copy_of_the_study(files: tuple[Path, list[str]]) -> None:
    file, options = files
    assert run("approve", file, *options, "--yes") == 0
    file.unlink()
    approval = approval_of(State(Path(options[-1])), STUDY.hash())
    assert approval is not None
    assert approval.study == STUDY


def test_without_a_terminal_or_yes_nothing_is_approved(
    files: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, options = files
    state = State(Path(options[-1]))
    assert run("approve", file, *options) == 1
    assert "--yes" in capsys.readouterr().err
    assert run("approve", file, *options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["approved"] is False
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer, code in (("", 1), ("no", 1), ("y", 1), ("yes", 0)):
        monkeypatch.setattr("builtins.input", lambda prompt, answer=answer: answer)
        assert run("approve", file, *options) == code
        assert bool(state.approvals()) == (code == 0)


def test_a_study_that_the_policy_forbids_cannot_be_approved_and_all_reasons_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_site(tmp_path / "north", "source")
    content = yaml.safe_load((folder / "site.yaml").read_text())
    content["policy"] |= {"max_rounds": 2, "allowed_tasks": ["infuse"], "privacy_required": True}
    content["policy"]["max_learning_rate"] = 1e-9
    (folder / "site.yaml").write_text(yaml.safe_dump(content))
    State.create(tmp_path / "state")
    file = write_study(tmp_path / "study.yaml")
    assert run("approve", file, "--site", folder, "--state", tmp_path / "state", "--yes") == 1
    page, shown = capsys.readouterr()
    for code in ("policy-rounds", "policy-task", "privacy-required", "policy-limit"):
        assert code in shown
    rates = {stage.source.learning_rate for stage in STUDY.stages if isinstance(stage.source, TrainingTask)}
    assert page.count("(refused)") == len(rates)
    assert State(tmp_path / "state").approvals() == []


def test_an_approval_is_withdrawn_by_file_or_hash_and_once(
    files: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, options = files
    for given in (file, STUDY.hash()):
        assert run("approve", file, *options, "--yes") == 0
        assert run("withdraw", given, *options[2:]) == 0
        assert run("withdraw", given, *options[2:]) == 1
    assert "not approved here" in capsys.readouterr().err


def test_what_was_decided_stays_on_record_with_its_names_and_times(
    files: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, options = files
    assert crossprobe.main(["ledger", "decisions", *options[2:]]) == 0
    assert "nothing was decided here" in capsys.readouterr().out
    assert run("approve", file, *options, "--yes", "--by", "Anna Berg") == 0
    assert run("withdraw", file, *options[2:], "--by", "Jörg Lind") == 0
    assert run("withdraw", file, *options[2:], "--by", "nobody") == 1  # there is nothing to take back
    assert run("approve", file, *options, "--yes", "--by", "Anna Berg") == 0
    State(Path(options[-1])).approval(STUDY.hash()).write_text("damaged")
    assert run("withdraw", file, *options[2:], "--by", "Jörg Lind") == 0
    capsys.readouterr()
    assert crossprobe.main(["ledger", "decisions", *options[2:], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(line["by"], line["what"], line["study"]) for line in found] == [
        ("Anna Berg", "approved", STUDY.name),
        ("Jörg Lind", "withdrew", STUDY.name),
        ("Anna Berg", "approved", STUDY.name),
        ("Jörg Lind", "withdrew", ""),
    ]
    assert {line["study_hash"] for line in found} == {STUDY.hash()}
    assert [bool(line["policy_hash"]) for line in found] == [True, False, True, False]
    assert crossprobe.main(["ledger", "decisions", *options[2:]]) == 0
    assert f"Anna Berg approved study {STUDY.name} {STUDY.hash()[:16]}" in capsys.readouterr().out


def test_where_no_record_can_be_written_nothing_is_approved_and_withdrawing_works(
    files: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, options = files
    state = State(Path(options[-1]))
    assert run("approve", file, *options, "--yes", "--by", "Anna Berg") == 0
    kept = state.decisions.read_bytes()
    state.decisions.unlink()
    state.decisions.symlink_to("/dev/full")  # a link is refused, and the disk is full
    assert run("withdraw", file, *options[2:]) == 1
    assert "is withdrawn, but that is on no record" in capsys.readouterr().err
    assert run("approve", file, *options, "--yes") == 1
    assert state.approvals() == []
    state.decisions.unlink()
    state.decisions.write_bytes(kept + b'{"what": "appr')  # half a line
    assert run("approve", file, *options, "--yes", "--by", "Anna Berg") == 0
    assert [decision.what for decision in decisions(state.decisions)] == ["approved", "approved"]


def test_a_restart_needs_the_worker_to_be_stopped(files: tuple[Path, list[str]]) -> None:
    file, options = files
    state = State(Path(options[-1]))
    with state.locked():
        assert run("approve", file, *options, "--yes", "--restart") == 1
    assert state.answered(STUDY.hash()).start == 0
    assert run("approve", file, *options, "--yes", "--restart") == 0
    assert state.answered(STUDY.hash()).start == 1


def test_an_approval_holds_for_a_patch_release_only() -> None:
    assert approved_line("0.1.0") == approved_line("0.1.9") == "0.1"
    assert approved_line("0.1.0") != approved_line("0.2.0")


def test_init_makes_a_secret_that_only_its_owner_can_read_once_and_prints_nothing_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "state"
    assert run("init", "--state", folder) == 0
    secret = (folder / "secret").read_bytes()
    assert run("init", "--state", folder) == 0
    assert run("init", "--state", folder, "--json") == 0
    shown = capsys.readouterr().out
    assert (folder / "secret").read_bytes() == secret
    assert secret.hex() not in shown
    assert digest(secret) not in shown
    assert os.stat(folder).st_mode & 0o077 == 0


@pytest.mark.parametrize("place", [0, 1])
def test_a_dry_run_writes_what_would_be_sent_and_touches_nothing(
    place: int, pair: Sequence[Path], sites: tuple[Site, Site], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = sites[place]
    own = hospital(tmp_path / "state", site)
    before = {path: path.stat().st_mtime_ns for path in own.state.folder.rglob("*")}
    file, out = write_study(tmp_path / "study.yaml"), tmp_path / "out"
    options = ("--site", pair[place], "--state", own.state.folder, "--out", out)
    assert run("dry-run", file, *options) == 0
    assert {path: path.stat().st_mtime_ns for path in own.state.folder.rglob("*")} == before
    headers = [unpack(path.read_bytes())[0] for path in sorted(out.glob("*.bin"))]
    replies = [header for header in headers if isinstance(header, TaskReply)]
    tasks = {task.task for r in STUDY.rounds() if (task := r.stage.task_of(site.config.role))}
    assert {reply.task for reply in replies} == tasks
    assert len(headers) == len(replies) + 1
    table = (out / "dry-run.md").read_text()
    for path in out.glob("*.bin"):
        assert digest(path.read_bytes()) in table
    for word in ("patients", "frames"):
        assert f"kept-{site.config.name}" not in table, word
    assert run("dry-run", file, *options) == 1
    assert "not empty" in capsys.readouterr().err


def test_a_dry_run_that_is_ended_leaves_nothing_in_the_way_of_the_next(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    from clients.governance.dry_run import dry_run

    def end(done: float, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    state = State.create(tmp_path / "state")
    with pytest.raises(KeyboardInterrupt):
        dry_run(STUDY, sites[0], state, tmp_path / "out", progress=end)
    assert {path.name for path in tmp_path.iterdir()} == {"state"}
    assert len(dry_run(STUDY, sites[0], state, tmp_path / "out")) > 2


def test_a_dry_run_shows_what_the_policy_would_refuse(sites: tuple[Site, Site], tmp_path: Path) -> None:
    from clients.governance.dry_run import dry_run

    strict = with_policy(sites[0], allowed_tasks=("score", "evaluate"))
    sent = dry_run(STUDY, strict, State.create(tmp_path / "state"), tmp_path / "out")
    assert {m.what.split()[-1]: m.answer for m in sent} == {
        "enrolment": "ok",
        "supervise": "policy-task",
        "infuse": "policy-task",
        "score": "ok",
        "evaluate": "ok",
    }
    assert isinstance(unpack((tmp_path / "out" / sent[1].file).read_bytes())[0], Refusal)


def test_a_dry_run_shares_no_randomness_with_the_real_run(sites: tuple[Site, Site], tmp_path: Path) -> None:
    from tiny import request

    from clients.governance.dry_run import dry_run
    from clients.node.worker import Worker

    state = State.create(tmp_path / "state")
    of = one_stage(source={"task": "supervise", "trains": ["source_branch"], "steps": 1})
    sent = dry_run(of, sites[0], state, tmp_path / "out")
    real = unpack(Worker(sites[0], of, state.secret(0)).handle(request(of, "only", "source", prior=None)))[1]
    dry = unpack((tmp_path / "out" / sent[1].file).read_bytes())[1]
    assert dry.keys() == real.keys()
    assert not same(dry, real)


def test_an_approval_that_nobody_gives_is_none(
    files: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    file, options = files
    monkeypatch.setattr("getpass.getuser", nameless)
    for by in ([], ["--by", " "]):
        assert run("approve", file, *options, "--yes", *by) == 1
        assert "--by 'Anna Berg'" in capsys.readouterr().err
    assert approval_of(State(Path(options[-1])), STUDY.hash()) is None


def test_a_second_approval_does_not_drop_the_signature_of_the_first(
    files: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, options = files
    make_keys(tmp_path / "signing")
    key = tmp_path / "signing" / "coordinator.pub"
    assert run("approve", file, *options, "--yes", "--by", "Anna", "--coordinator-key", key) == 0
    assert run("approve", file, *options, "--yes", "--by", "Bert") == 1
    assert "would take unsigned ones" in capsys.readouterr().err
    approval = approval_of(State(Path(options[-1])), STUDY.hash())
    assert approval is not None
    assert (approval.by, bool(approval.coordinator)) == ("Anna", True)


def test_a_dry_run_is_not_written_into_the_sites_folder(
    files: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, options = files
    site = Path(options[1])
    assert run("dry-run", file, *options, "--out", site / "dry") == 1
    assert "apart from the images" in capsys.readouterr().err
    assert not (site / "dry").exists()
