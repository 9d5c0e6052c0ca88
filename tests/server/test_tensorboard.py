"""TensorBoard's files hold the run's numbers, each once, whenever and however often they are written."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fabricated import evaluation, fabricate, study_with_baseline
from tensorboardX.proto.event_pb2 import Event
from tiny import write_study

import crossprobe
from common.baseline import baseline_of
from common.errors import RunError
from common.run_folder import RunFolder
from common.study import Study
from server import history
from server.history import RoundRecord
from server.tensorboard import Events
from simulations.simulate import Progress

Points = dict[str, list[tuple[int, float, float]]]


def points(folder: Path) -> Points:
    """Tag -> (step, value, wall time), as TensorBoard's records hold them: length, its check, content, its check."""
    found: Points = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value, event.wall_time))
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    difference = (0.06, 0.02, 0.1)
    made = fabricate(tmp_path / "run", evaluated={"north": evaluation(difference), "east": evaluation(difference)})
    fabricate(RunFolder(made).baseline.path, study=baseline_of(study_with_baseline(), rounds=2))
    return made


def test_a_finished_run_becomes_curves_of_loss_score_and_dice(run: Path, tmp_path: Path) -> None:
    assert crossprobe.main(["report", str(run), "--tensorboard", str(tmp_path / "board")]) == 0
    found, records = points(tmp_path / "board" / "study"), history.read(run)
    for record in records:
        for site, own in record.sites.items():
            if "loss" in own.metrics:
                curve = {step: value for step, value, _ in found[f"loss/{record.stage}/{site}"]}
                assert curve[record.round] == pytest.approx(own.metrics["loss"])
    assert [step for step, _, _ in found["score/all_sites"]] == [r.round for r in records if r.score is not None]
    assert found["test_dice/east/infusion"][0][:2] == (records[-1].round, pytest.approx(0.8))
    assert found["test_dice/east/baseline"][0][1] == pytest.approx(0.74)
    assert len(found["val_dice/north"]) > 3  # one curve over all stages
    first, second = (when for _, _, when in found["val_dice/north"][:2])
    assert second - first == 15  # the rounds' own times, not those of the writing
    assert points(tmp_path / "board" / "baseline").keys() >= {"loss/baseline/north"}


def test_a_run_is_followed_and_written_again_without_doubles(run: Path, tmp_path: Path) -> None:
    board, whole = tmp_path / "board", RunFolder(run).history.read_text().splitlines(keepends=True)
    other = board / "study" / "events.out.tfevents.1.of-another-tool"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"")
    RunFolder(run).history.write_text("".join(whole[:2]))
    with Events(run, board) as events:
        assert {step for curve in points(board / "study").values() for step, _, _ in curve} == {0, 1}
        RunFolder(run).history.write_text("".join(whole[:1]))  # a resumed run repeats round 1
        events.update()
        RunFolder(run).history.write_text("".join(whole))
        events.update()
    once = points(board / "study")
    assert all(len({step for step, _, _ in curve}) == len(curve) for curve in once.values())
    with Events(run, board):
        pass
    assert points(board / "study") == once
    assert other.exists()


def test_rounds_that_did_not_count_are_no_points(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", changes={1: {"counted": False}})
    with Events(run, tmp_path / "board"):
        pass
    assert {step for curve in points(tmp_path / "board" / "study").values() for step, _, _ in curve} >= {0, 2}
    assert all(step != 1 for curve in points(tmp_path / "board" / "study").values() for step, _, _ in curve)
    assert not (tmp_path / "board" / "baseline").exists()


def test_a_folder_that_cannot_be_written_is_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Choose another --tensorboard"), Events(run, tmp_path / "file"):
        pass


def test_study_run_writes_events_round_by_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def follow(cli: object, run_id: str, out: Path, on_round: Callable[[RoundRecord], None]) -> None:
        fabricate(tmp_path / "made", evaluated={"east": evaluation(None)})
        out.mkdir()
        for record in history.read(tmp_path / "made"):
            history.append(out, record)
            on_round(record)
            steps.append(max(step for curve in points(board / "study").values() for step, _, _ in curve))

    board = tmp_path / "board"
    monkeypatch.setattr("server.federation.cli._connection", lambda *_: None)
    monkeypatch.setattr("server.federation.deployment.start", lambda *_, **__: "1")
    monkeypatch.setattr("server.federation.deployment.follow", follow)
    study = write_study(tmp_path / "study.yaml")
    words = ["study", "run", str(study), "--out", str(tmp_path / "run"), "--tensorboard", str(board)]
    assert crossprobe.main(words) == 0
    assert steps == [record.round for record in history.read(tmp_path / "run")]


def test_simulate_writes_events_of_study_and_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def simulate(
        study: Study, folders: object, out: Path, *, on_progress: Callable[[Progress], None], **_: object
    ) -> dict[str, Any]:
        fabricate(out, evaluated={"east": evaluation(None)})
        on_progress(Progress("baseline", 1, 9, None))
        fabricate(RunFolder(out).baseline.path, study=baseline_of(study_with_baseline(), rounds=2))
        return {"wall_s": 1.0, "dice": {}, "difference_to_baseline": {}, "roles": {}}

    monkeypatch.setattr("simulations.simulate.simulate", simulate)
    board, study = tmp_path / "board", write_study(tmp_path / "study.yaml")
    words = ["simulate", str(study), "--sites", str(tmp_path), "--out", str(tmp_path / "run")]
    assert crossprobe.main([*words, "--tensorboard", str(board)]) == 0
    assert points(board / "study").keys() >= {"score/all_sites", "loss/pretrain/north"}
    assert points(board / "baseline").keys() >= {"loss/baseline/north"}
