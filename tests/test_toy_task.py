"""A task that only this module declares, from study to report: nothing else has to name it."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from hospital import hospital
from pydantic import Field
from tiny import Between, answer, request, study, workers, write_site

from clients.data.site import load_site
from clients.governance.disclosure import of_contract, of_study, page
from clients.governance.policy import Policy
from clients.governance.proposal import propose
from clients.learning.training import Loss, Measured, Objective, TaskContext
from common.components import Role
from common.errors import ContractError, StudyError
from common.messages import TaskReply, unpack
from common.metric import Metric
from common.study import Study
from common.tasks import TASKS, Task, TrainingTask
from server import history
from server.report.page import render_report
from server.run import run_study

TODAY = date(2026, 5, 1)


def objective(context: TaskContext) -> Objective:
    """Pull the projector's weights to zero; the images are only counted."""

    def loss(frames: Sequence[object], generator: torch.Generator) -> Loss:
        weight = context.networks.projector.out.weight.square().mean()
        return Loss(weight.expand(len(frames)), {"shrinking": 0.25})

    return Objective(loss, {"heaviness": Measured(0.5, 6), "of_too_few": Measured(0.1, 2)})


@pytest.fixture(scope="module", autouse=True)
def declared() -> Iterator[None]:
    class Shrink(TrainingTask):
        implementation: ClassVar[str] = __name__
        meaning: ClassVar[str] = "makes a helper network smaller, for a test"
        roles: ClassVar[tuple[Role, ...]] = ("target",)
        trainable: ClassVar[tuple[str, ...]] = ("projector",)
        metrics: ClassVar[Mapping[str, Metric]] = {
            "loss": TASKS["supervise"].metrics["loss"],
            "shrinking": Metric(0, 1, "how fast it shrinks, in a test"),
            "heaviness": Metric(0, 1, "how heavy it was, in a test"),
            "of_too_few": Metric(0, 1, "a number about two patients, in a test"),
        }
        not_private: ClassVar[str] = "it is a toy"
        task: Literal["shrink"] = "shrink"
        trains: tuple[str, ...] = Field(default=("projector",), min_length=1)

    yield
    del TASKS["shrink"]


def toy(**changes: object) -> Study:
    supervise = {"task": "supervise", "trains": ["source_branch"], "steps": 2}
    stage = {"name": "only", "rounds": 2, "source": supervise, "target": {"task": "shrink", "steps": 2}}
    return study(batch_size=6, stages=[stage | changes])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("toy")
    return [write_site(folder / "north", "source"), write_site(folder / "east", "target", seed=1)]


def test_a_study_takes_it_and_gives_it_to_its_roles_only() -> None:
    assert toy().stages[0].target is not None
    with pytest.raises(StudyError, match=r"shrink. is for target sites"):
        toy(source={"task": "shrink"})
    with pytest.raises(StudyError, match=r"stages\.0\.target\.steps"):
        toy(target={"task": "shrink", "steps": 0})
    with pytest.raises(StudyError, match="it is a toy"):
        study(stages=[s.model_dump() for s in toy().stages], privacy={"nominal_patients": 8, "delta": 1e-3})


@pytest.mark.parametrize(("name", "reason", "wrong"), [("Look", "x", "small letters"), ("look", "", "not_private")])
def test_a_task_that_cannot_travel_or_forgets_privacy_is_no_task(name: str, reason: str, wrong: str) -> None:
    with pytest.raises(TypeError, match=wrong):

        class Look(Task):
            not_private: ClassVar[str] = reason
            task: str = name

    assert name not in TASKS


def test_the_hospitals_tables_and_policy_know_it(folders: Sequence[Path]) -> None:
    assert "`shrink` makes a helper network smaller" in page(of_contract())
    (row,) = (row for row in of_study(toy(), ["target"]) if row.task == "shrink")
    assert row.sends == ("projector",)
    assert "how heavy it was, in a test" in page([row], toy())
    (plan, *_) = propose(toy(), load_site(folders[1]), today=TODAY).stages
    assert (plan.task, plan.sends, plan.steps) == ("shrink", ("projector",), 2)
    assert "shrink" in Policy().allowed_tasks
    task = toy().stages[0].target
    assert task is not None
    with pytest.raises(ContractError, match="policy-task"):
        Policy(allowed_tasks=("score",), min_update_draws=1).check_request(toy(), "target", task)


def test_a_site_does_it_and_sends_what_it_declares_of_enough_patients(folders: Sequence[Path]) -> None:
    (east,) = workers(toy(), folders[1:])
    header, updates = answer(east, request(toy(), "only", "target"))
    assert {name.partition("/")[0] for name in updates} == {"projector"}
    assert float(abs(updates["projector/out.weight"]).max()) > 0
    assert header.metrics.keys() == {"loss", "shrinking", "heaviness"}
    assert header.metrics["shrinking"] == 0.25


def test_the_ledger_the_aggregate_and_the_report_have_it(folders: Sequence[Path], tmp_path: Path) -> None:
    guarded = hospital(tmp_path / "state", load_site(folders[1]), toy())
    assert isinstance(guarded.answer(request(toy(), "only", "target")), TaskReply)
    assert [line["task"] for line in guarded.ledger()] == ["shrink", "shrink"]

    transport = Between(workers(toy(), folders))
    state = run_study(toy(), transport, tmp_path / "run")
    reply = transport.received[0]["east"]
    assert isinstance(reply, bytes)
    header, updates = unpack(reply)
    assert isinstance(header, TaskReply)
    first = history.read(tmp_path / "run")[0].sites["east"]
    assert (first.task, first.status, first.metrics) == ("shrink", "ok", header.metrics)
    assert state.components["projector/out.weight"].shape == updates["projector/out.weight"].shape
    assert "shrink" in render_report(tmp_path / "run").read_text(encoding="utf-8")
