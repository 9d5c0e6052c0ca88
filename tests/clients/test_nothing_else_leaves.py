"""What leaves a site: exactly the contract's tensors and metrics, and no trace of patients or files."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from finished import Finished
from tiny import refusal, request, workers, write_site

from common.components import ROLES, Role
from common.messages import EnrolRequest, TaskReply, TaskRequest, digest, pack, unpack
from common.networks import initial_networks
from common.tasks import TASKS


def exchanged(distilled: Finished) -> Iterator[tuple[Role, TaskRequest, bytes, TaskReply, bytes]]:
    for sent, received in zip(distilled.transport.sent, distilled.transport.received, strict=True):
        for site, reply in received.items():
            asked, answered = unpack(sent[site])[0], unpack(reply)[0]
            assert isinstance(asked, TaskRequest)
            assert isinstance(answered, TaskReply), answered
            yield distilled.state.participants[site].role, asked, sent[site], answered, reply


def traces(folder: Path) -> set[bytes]:
    """Everything that names a patient, a file or a place at this site."""
    words = {str(folder), str(folder.parent), folder.parent.name, "manifest.csv", "site.yaml", "probe-x", ".png"}
    rows = [row.split(",") for row in (folder / "manifest.csv").read_text().splitlines()[1:]]
    words |= {Path(cell).name for row in rows for cell in row[:4] if cell}
    words |= {Path(cell).stem for row in rows for cell in row[:4] if cell}
    return {word.encode() for word in words}


def test_every_task_sends_exactly_the_tensors_it_trains(distilled: Finished) -> None:
    study, networks, seen = distilled.study, initial_networks(distilled.study), set()
    rounds = study.rounds()
    for role, asked, sent, answered, reply in exchanged(distilled):
        if asked.task in ("score", "evaluate"):
            expected: dict = {}
        else:
            task = rounds[asked.round].stage.task_of(role)
            assert task is not None
            assert task.trains
            expected = networks.shapes(task.trains)
        assert {name: x.shape for name, x in unpack(reply)[1].items()} == expected
        assert answered.request == digest(sent)
        seen.add(asked.task)
    assert seen == set(TASKS)


def test_every_task_sends_the_numbers_that_the_study_tells_a_hospital(distilled: Finished) -> None:
    study, seen = distilled.study, set()
    rounds = study.rounds()
    for role, asked, _, answered, _ in exchanged(distilled):
        told = study.metrics_of(rounds[asked.round].stage, role)
        assert set(told) <= set(TASKS[asked.task].metrics)
        assert answered.metrics
        assert answered.metrics.keys() <= set(told), (role, asked.task, asked.round)  # its policy may keep some back
        if asked.task == "supervise":
            assert answered.metrics.keys() == set(told)
        seen.add(asked.task)
    assert seen == set(TASKS)


@pytest.mark.parametrize(("stage", "sent"), [("pretrain", False), ("adapt", False), ("refine", True)])
def test_labelled_sites_measure_a_model_only_where_it_may_be_released(
    stage: str, sent: bool, distilled: Finished
) -> None:
    asked = next(r.stage for r in distilled.study.rounds() if r.stage.name == stage)
    assert asked.source is not None
    assert asked.source.task == "supervise"
    assert ("val_dice" in distilled.study.metrics_of(asked, "source")) == sent


def test_no_reply_names_a_patient_a_file_or_a_folder(distilled: Finished, pair: Sequence[Path]) -> None:
    forbidden = set.union(*(traces(folder) for folder in pair))
    assert b"kept-north-train-0" in forbidden
    assert b"scan-east-test-4.png" in forbidden
    replies = [reply for *_, reply in exchanged(distilled)]
    replies += distilled.transport.enrol(pack(EnrolRequest(study=distilled.study.hash()))).values()
    for reply in replies:
        assert [word for word in forbidden if word in reply] == []


def remove(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


def replace_by_text(file: Path) -> None:
    file.write_text(f"notes on {file.stem}")


def turn_into_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("breaks", [remove, cut, replace_by_text, turn_into_folder])
@pytest.mark.parametrize("role", ROLES)
def test_a_refusal_over_broken_files_names_none_of_them(
    role: Role, breaks: Callable[[Path], None], tmp_path: Path, distilled: Finished
) -> None:
    study = distilled.study
    folder = write_site(tmp_path / "ward-seven", role)
    (worker,) = workers(study, [folder])
    for file in (folder / "images").iterdir():
        breaks(file)
    forbidden = traces(folder)
    rounds = [round_ for round_ in study.rounds() if round_.stage.task_of(role) is not None]
    assert len(rounds) > 3
    for round_ in rounds:
        reply = worker.handle(request(study, round_.stage.name, role, step=round_.step))
        assert refusal(reply).code == "site-error", round_.stage.name
        assert [word for word in forbidden if word in reply] == []
