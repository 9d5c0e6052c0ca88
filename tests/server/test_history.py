"""The record of a run as those who follow it read it."""

import json
from pathlib import Path

import pytest

from server import history
from server.federation.following import line
from server.history import RoundRecord, SiteRecord


def record(index: int) -> RoundRecord:
    return RoundRecord(index, "pretrain", "2026-01-01T00:00:00+00:00", 1.0, {"north": SiteRecord("source", "x", "ok")})


def test_each_change_is_seen_and_what_did_not_change_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert history.read(tmp_path) == []
    for index in range(3):
        history.append(tmp_path, record(index))
        assert [each.round for each in history.read(tmp_path)] == list(range(index + 1))
    history.rewind(tmp_path, 1)
    history.append(tmp_path, record(1))
    assert [each.round for each in history.read(tmp_path)] == [0, 1]
    history.read(tmp_path).clear()  # whoever changes what it was given changes nobody else's
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail("read again"))
    assert [each.round for each in history.read(tmp_path)] == [0, 1]


def test_a_rounds_losses_are_means_over_the_sites_of_a_task() -> None:
    sites = {
        "north": SiteRecord("source", "supervise", "ok", metrics={"loss": 0.4, "val_dice": 0.9}),
        "east": SiteRecord("source", "supervise", "ok", metrics={"loss": 0.2}),
        "south": SiteRecord("target", "score", "ok", metrics={"score": 0.7}),
    }
    record = RoundRecord(3, "adapt", "2026-01-01T00:00:00+00:00", 2.0, sites)
    assert history.losses(record) == {"supervise": pytest.approx(0.3)}
    assert line(record) == "round 3 adapt: 3 of 3 sites, 2.0 s, supervise loss 0.3"
