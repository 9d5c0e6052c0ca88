"""Averaged weights, and who teaches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Between, answer, one_stage, request, same, study, workers

from clients.learning import self_train
from clients.learning.training import averaging, follow
from common.components import BRANCHES, Tensors, component_of
from common.messages import unpack
from server.run import run_study

SUPERVISE = {"task": "supervise", "trains": ["source_branch"], "steps": 6}
TEACH = {"task": "self_train", "trains": BRANCHES, "steps": 6}


def updates_of(folder: Path, start: Tensors | None = None, **roles: dict) -> Tensors:
    of = one_stage(**roles)
    (worker,) = workers(of, [folder])
    return answer(worker, request(of, "only", next(iter(roles)), start))[1]  # type: ignore[arg-type]


def norm(updates: Tensors) -> float:
    return float(np.sqrt(sum(float(np.square(x, dtype=np.float64).sum()) for x in updates.values())))


def test_a_running_average_of_a_constant_is_that_constant_and_forgets_its_start() -> None:
    average, current = [torch.full((3,), 5.0)], [torch.full((3,), 2.0)]
    for step in range(400):
        follow(average, current, averaging(0.95, step))
    torch.testing.assert_close(average[0], current[0])
    assert averaging(0.95, 0) < 0.2
    assert averaging(0.95, 10_000) == 0.95


def test_what_leaves_is_the_average_of_the_steps_and_lags_behind_the_last(pair: Sequence[Path]) -> None:
    last, averaged = (updates_of(pair[0], source=SUPERVISE | {"average": d}) for d in (0.0, 0.9))
    assert 0.1 * norm(last) < norm(averaged) < norm(last)


def test_an_average_without_memory_is_the_last_step(pair: Sequence[Path]) -> None:
    last, forgetful = (updates_of(pair[0], source=SUPERVISE | {"average": d}) for d in (0.0, 1e-12))
    assert all(np.allclose(forgetful[name], x, atol=1e-6) for name, x in last.items())


@pytest.mark.parametrize("branch", BRANCHES)
def test_one_branch_alone_is_taught_by_itself(
    branch: str, pair: Sequence[Path], trained: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other branch says must not matter: it may be the baseline that holds the average back."""
    alone = {name: x for name, x in trained.items() if name.startswith(branch)}  # the other one is untrained
    monkeypatch.setattr(self_train, "score_received", lambda context, views: {})  # it judges the fusion
    task = TEACH | {"trains": [branch]}
    first, second = (updates_of(pair[1], start, target=task) for start in (trained, alone))
    assert {component_of(name) for name in first} == {f"{branch}.encoder", f"{branch}.decoder"}
    assert same(first, second)


def test_artefacts_change_what_the_student_sees(pair: Sequence[Path], trained: Tensors) -> None:
    plain = updates_of(pair[1], trained, target=TEACH)
    assert not same(plain, updates_of(pair[1], trained, target=TEACH | {"artefacts": {"shadow": 1.0}}))
    source = updates_of(pair[0], source=SUPERVISE)
    assert not same(source, updates_of(pair[0], source=SUPERVISE | {"artefacts": {"shadow": 1.0}}))


def test_small_parts_are_no_pseudo_labels(pair: Sequence[Path], trained: Tensors) -> None:
    of, strict = (
        study(smallest_part=share, stages=[{"name": "only", "rounds": 1, "target": TEACH}]) for share in (0, 1)
    )
    shares = []
    for whole in (of, strict):
        (east,) = workers(whole, pair[1:])
        shares.append(answer(east, request(whole, "only", "target"))[0].metrics["pseudo_foreground_fraction"])
    assert shares[1] < shares[0], "an untrained model's many parts are mostly gone"


def test_a_study_whose_branches_part_runs_to_its_end_and_keeps_the_first_branch(
    pair: Sequence[Path], tmp_path: Path
) -> None:
    supervise = SUPERVISE | {"steps": 2, "average": 0.9, "artefacts": {"reverberation": 0.5}}
    teach = {"task": "self_train", "trains": ["target_branch"], "steps": 2}
    refine = {"name": "refine", "rounds": 2, "begin": {"target_branch": "source_branch"}, "target": teach}
    refine["source"] = supervise | {"trains": ["target_branch"]}
    of = study(stages=[{"name": "supervise", "rounds": 1, "source": supervise}, refine], smallest_part=0.2)
    between = Between(workers(of, pair))
    state = run_study(of, between, tmp_path / "run")
    first = next(unpack(sent["east"])[1] for sent in between.sent if "east" in sent)
    for name, x in first.items():
        if name.startswith("source_branch"):
            assert np.array_equal(x, state.components[name]), "the baseline is not touched again"
            twin = name.replace("source", "target", 1)
            assert np.array_equal(x, first[twin]), "the second branch begins as the first"
    assert any(not np.array_equal(x, state.components[n]) for n, x in first.items() if n.startswith("target_branch"))
