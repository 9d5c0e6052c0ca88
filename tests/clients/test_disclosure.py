"""The privacy officer's table: all of the contract, nothing of its own, and what real replies hold."""

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest
from finished import Finished
from private import private
from tiny import study, write_study

from clients.data.site import load_site
from clients.governance.disclosure import EVALUATION, of_contract, of_study, page
from clients.governance.proposal import propose
from common.components import COMPONENTS, Role, component_of
from common.messages import REPLIES, EnrolRequest, TaskReply, pack, unpack
from common.tasks import TASKS
from crossprobe import main

STUDY = study()


def test_every_field_of_every_reply_has_its_sentence() -> None:
    for reply in REPLIES:
        assert reply.when
        assert all(field.description for field in reply.model_fields.values())


def test_the_table_holds_every_task_component_and_number_of_the_contract() -> None:
    rows = of_contract()
    assert {row.task: row.metrics for row in rows} == {name: tuple(task.metrics) for name, task in TASKS.items()}
    assert {name for row in rows for name in row.sends} == set(COMPONENTS)
    text = page(rows)
    for name in (*TASKS, *COMPONENTS, *(n for own in TASKS.values() for n in own.metrics if "/" not in n), EVALUATION):
        assert f"`{name}`" in text


def test_what_real_replies_hold_is_in_the_table_of_their_study(finished: Finished) -> None:
    enrolled = finished.transport.enrol(pack(EnrolRequest(study=finished.study.hash())))
    for received in (*finished.transport.received, enrolled):
        for site, reply in received.items():
            header, tensors = unpack(reply)
            assert type(header) in REPLIES
            if isinstance(header, TaskReply):
                role: Role = "source" if site == "north" else "target"
                (row,) = (r for r in of_study(finished.study, [role]) if r.where.startswith(f"{header.stage}, "))
                assert row.task == header.task
                assert {component_of(name) for name in tensors} == set(row.sends)
                assert header.metrics.keys() <= set(row.metrics)


def test_the_table_of_a_study_says_what_its_approval_does(pair: Sequence[Path]) -> None:
    for folder in pair:
        proposal = propose(STUDY, load_site(folder), today=date(2026, 5, 1))
        said = [(row.task, row.sends, row.metrics) for row in of_study(STUDY, [proposal.role])]
        assert said == [(stage.task, stage.sends, stage.metrics) for stage in proposal.stages]


def test_under_privacy_the_table_names_no_number_of_a_training_task() -> None:
    assert {row.metrics for row in of_study(private())} == {()}
    assert "`loss`" not in page(of_study(private()), private())


def test_the_command_narrows_the_table_to_a_study_and_a_role(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["site", "disclosure"]) == 0
    assert capsys.readouterr().out == page(of_contract())
    file = write_study(tmp_path / "study.yaml")
    assert main(["site", "disclosure", str(file), "--role", "target"]) == 0
    shown = capsys.readouterr().out
    assert STUDY.hash() in shown
    assert "target sites, 2 rounds: `self_train`" in shown
    assert "source sites" not in shown
    assert "`infusion_head`" not in shown
    assert main(["site", "disclosure", str(file), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(of_study(STUDY))
    assert main(["site", "disclosure", "--role", "target"]) == 1
    assert "give the study's file too" in capsys.readouterr().err
