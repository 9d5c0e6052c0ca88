"""Weights that no round of the study can have made of those that a site knows are refused before an image is seen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hospital import Stub, hospital, with_policy
from tiny import answer, content, distilling, one_stage, request, study, workers

from clients.data.site import Site
from clients.governance.received import Received, keep_received, read_received
from clients.learning.training import annealed
from clients.learning.travel import ROUNDING, STEP, Travel
from common.components import BASELINE, FUSED, Tensors, select
from common.errors import SiteStateError
from common.messages import Message
from common.networks import initial_networks
from common.stage import Round
from common.study import Study
from common.tasks import TrainingTask
from server.algorithm import Reply, apply, begun, init
from server.rounds import requests_of
from server.state import Participant, ServerState

#: Every model that scores below the best so far is undone.
STRICT = {"tolerance": 0.0, "rollback": 0.0}
LONG = one_stage(rounds=6, source={"task": "supervise", "trains": ["source_branch"], "steps": 2})


def foreign(of: Study) -> Tensors:
    """Weights that look as trained as any, and are nobody's in this study: those of another seed."""
    return initial_networks(of.model_copy(update={"seed": of.seed + 1})).export(FUSED)


def test_a_coordinator_that_is_honest_for_some_rounds_and_then_swaps_the_weights_is_refused(
    tmp_path: Path, site: Site, pair: Sequence[Path], stub: Stub
) -> None:
    north = hospital(tmp_path / "state", site, LONG)
    model: Tensors = {}
    for step in range(3):
        payload = request(LONG, "only", "source", model, step=step)
        assert north.code(payload) == "ok"
        received = Message.parse(payload).tensors
        model = {name: x + np.float32(0.0005) for name, x in received.items()}
    swapped = request(LONG, "only", "source", foreign(LONG), step=3)
    assert north.code(swapped) == "implausible-weights"
    north = north.reopened()
    assert north.code(swapped) == "implausible-weights"
    assert len(stub.ran) == 3
    # compared with the first weights alone they pass, and as a step from the last ones the next model does
    (simulated,) = workers(LONG, pair[:1])
    answer(simulated, swapped)
    assert north.code(request(LONG, "only", "source", model, step=3)) == "ok"


def test_the_first_round_brings_the_seeded_weights_and_no_others(tmp_path: Path, site: Site, stub: Stub) -> None:
    north = hospital(tmp_path / "state", site, LONG)
    assert north.code(request(LONG, "only", "source", foreign(LONG))) == "implausible-weights"
    close = initial_networks(LONG).export(FUSED)
    close = {name: x + np.float32(3 * ROUNDING) for name, x in close.items()}
    assert north.code(request(LONG, "only", "source", close)) == "implausible-weights"
    assert not stub.ran
    assert north.code(request(LONG, "only", "source")) == "ok"


def test_rounds_that_a_site_missed_count_as_way_and_refused_weights_are_not_remembered(
    tmp_path: Path, site: Site, stub: Stub
) -> None:
    north = hospital(tmp_path / "state", site, LONG)
    assert north.code(request(LONG, "only", "source")) == "ok"
    far = {name: x + np.float32(0.01) for name, x in initial_networks(LONG).export(FUSED).items()}
    for step, code in ((1, "implausible-weights"), (2, "implausible-weights"), (5, "ok")):
        assert north.code(request(LONG, "only", "source", far, step=step)) == code


def test_a_policy_that_only_wants_a_report_goes_on(tmp_path: Path, site: Site, stub: Stub) -> None:
    north = hospital(tmp_path / "state", with_policy(site, implausible_weights="report"), LONG)
    assert north.code(request(LONG, "only", "source", foreign(LONG))) == "ok"


def test_a_study_that_starts_over_starts_with_its_first_weights(tmp_path: Path, site: Site, stub: Stub) -> None:
    north = hospital(tmp_path / "state", site, LONG)
    moved = {name: x + np.float32(0.001) for name, x in initial_networks(LONG).export(FUSED).items()}
    assert north.code(request(LONG, "only", "source")) == "ok"
    assert north.code(request(LONG, "only", "source", moved, step=1)) == "ok"
    north.state.start_over(LONG.hash())
    assert north.code(request(LONG, "only", "source", moved)) == "implausible-weights"
    assert north.code(request(LONG, "only", "source")) == "ok"


def test_what_was_received_is_read_as_it_was_kept_and_damage_is_named(tmp_path: Path, site: Site) -> None:
    north = hospital(tmp_path / "state", site, LONG)
    kept = Received().after({"infusion_head/w": np.arange(3, dtype=np.float32)}, 4)
    keep_received(north.state, LONG.hash(), 1, kept)
    found = read_received(north.state, LONG.hash(), 1)
    assert found.rounds == {"infusion_head": 4}
    assert found.tensors["infusion_head/w"].tolist() == [0, 1, 2]
    assert not read_received(north.state, LONG.hash(), 2).rounds
    path = north.state.received(LONG.hash())
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(SiteStateError, match="damaged"):
        read_received(north.state, LONG.hash(), 1)
    assert north.code(request(LONG, "only", "source")) == "state-failed"


def growing_out() -> Study:
    """A second branch begins as the first one, and refine rounds come back to it again and again."""
    refine = content()["stages"][2] | {"rounds": 6, "begin": {"target_branch": "source_branch"}}
    return study(stages=[content()["stages"][0] | {"rounds": 2}, refine, content()["stages"][3]], release=STRICT)


STUDIES = {
    "all tasks": study(stages=[stage | {"rounds": 3} for stage in content()["stages"]], release=STRICT),
    "begin": growing_out(),
    "scored between": study(
        stages=[
            *(stage | {"rounds": 2} for stage in content()["stages"]),
            {"name": "steady", "rounds": 3, "target": {"task": "score"}},
            content()["stages"][2] | {"name": "again", "rounds": 4},
        ],
        release=STRICT,
    ),
    "distil": distilling(release=STRICT),
    "weights of the roles": study(
        stages=[
            stage | {"rounds": 2, "weights": {"target_branch.encoder": {"source": 2.0, "target": 0.25}}}
            for stage in content()["stages"][1:3]
        ],
        release=STRICT,
    ),
}


def farthest(task: TrainingTask, round_: Round, tensors: Tensors, rng: np.random.Generator) -> Tensors:
    """Updates as large as any training's: every step moves every number by its rate, most of them one way."""
    rates = (task.learning_rate * annealed(round_.learning_rate_progress(task, step)) for step in range(task.steps))
    way = STEP * sum(rates) * rng.choice((-1.0, 1.0))
    return {name: np.full_like(x, way) for name, x in select(tensors, task.trains).items()}


@pytest.mark.parametrize("of", STUDIES.values(), ids=STUDIES)
def test_whatever_honest_rounds_do_a_site_follows(of: Study) -> None:
    """Roll-backs, a branch that begins anew, the released model, missed rounds: with the largest steps there are."""
    undone = sum(followed(of, np.random.default_rng(seed)) for seed in range(6))
    assert undone > 0


def followed(of: Study, rng: np.random.Generator) -> int:
    """Run a study whose scores and absences are chance, check each request as its site would, and count roll-backs."""
    sites = {"a": Participant("source", 5, False), "b": Participant("target", 5, False)}
    initial = initial_networks(of).export((*of.components, *BASELINE))
    state: ServerState = init(of, sites, initial)
    travel, received = Travel(of, initial), dict.fromkeys(sites, Received())
    undone = 0
    for round_ in of.rounds():
        state = begun(state, round_)
        replies = []
        for site, asked in requests_of(of, state, round_).items():
            task = round_.stage.task_of(sites[site].role)
            assert task is not None
            updates: Tensors = {}
            if rng.random() < 0.7:
                travel.check(asked.tensors, round_, task, received[site])
                received[site] = received[site].after(asked.tensors, round_.index)
            if isinstance(task, TrainingTask):
                updates = farthest(task, round_, asked.tensors, rng)
            number = "score" if sites[site].role == "target" else "val_dice"
            replies.append(Reply(site, {number: float(rng.random())} if round_.stage.selects_release else {}, updates))
        state, diagnostics = apply(of, state, round_, replies)
        undone += diagnostics.rolled_back
    return undone
