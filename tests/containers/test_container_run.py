"""A run between kits in containers. `make container-test`."""

from functools import partial
from pathlib import Path

import pytest
from container_story import SITES, STUDY, Story
from tiny import Between, Change

from clients.data.site import load_site
from clients.governance.ledger import read as read_ledger
from clients.governance.state import State
from clients.node.refusals import refusal
from clients.node.worker import Worker
from common.messages import pack, unpack
from common.run_folder import RunFolder
from common.study import load_study
from server import history
from server.run import run_study

pytestmark = pytest.mark.containers


def test_the_released_tensors_are_the_simulations_bit_for_bit(story: Story, tmp_path: Path) -> None:
    study = load_study(STUDY)
    missed = {
        (record.round, name)
        for record in history.read(story.run_folder)
        if record.counted
        for name, site in record.sites.items()
        if site.status != "ok"
    }

    def absent(name: str, request: bytes, reply: bytes) -> bytes:
        header, _ = unpack(request)
        return pack(refusal("worker-unreachable")) if (getattr(header, "round", None), name) in missed else reply

    change: dict[str, Change] = {name: partial(absent, name) for name in SITES}
    workers = [
        Worker(load_site(kit.folder / "site"), study, State(kit.folder / "state").secret(0))
        for kit in story.hospitals.values()
    ]
    run_study(study, Between(workers, change), tmp_path)
    assert RunFolder(story.run_folder).model.read_bytes() == RunFolder(tmp_path).model.read_bytes()


def test_the_engine_was_restarted_in_mid_run_and_every_round_counted(story: Story) -> None:
    rounds = len(load_study(STUDY).rounds())
    assert 0 < story.rounds_at_restart < rounds
    assert [record.round for record in history.read(story.run_folder) if record.counted] == list(range(rounds))
    assert (story.run_folder / "report.html").stat().st_size > 10_000
    assert "finished:completed" in story.said["status"]


def test_a_newcomer_who_starts_first_is_told_why_and_is_in_once_registered(story: Story) -> None:
    assert "Exit Code: 305" in story.early["logs"]
    assert "Failed to activate SuperNode" in story.early["logs"]
    assert story.early["others"]  # the others are healthy, and only the SuperNode waits


@pytest.mark.parametrize("name", SITES)
def test_a_hospital_sees_its_data_its_question_and_what_left(story: Story, name: str) -> None:
    assert f"{name}: a {SITES[name]} site without findings" in story.said[f"{name} check"]
    assert "approved by" in story.said[f"{name} approve"]
    assert "sent:" in story.said[f"{name} ledger"]
    done = [
        e
        for e in read_ledger(story.kits[name].folder / "state" / "ledger.jsonl")
        if e["task"] and e["direction"] == "out"
    ]
    assert len({entry["round"] for entry in done}) == len(load_study(STUDY).rounds())


def test_an_image_holds_no_tests_and_nothing_to_build_against(story: Story) -> None:
    for image in ("crossprobe-node:0.1.0", "crossprobe-worker:0.1.0", "crossprobe-server:0.1.0"):
        look = "find / -xdev -name tests -path '*-packages/*' -o -xdev -path '*/torch/include'"
        assert story.engine.docker("run", "--rm", image, "sh", "-c", look, check=False).stdout.strip() == ""


def test_everything_was_taken_down(story: Story) -> None:
    assert {name: left for name, left in story.left_over.items() if left} == {}
