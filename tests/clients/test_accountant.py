"""The privacy budget: what steps cost against other ways to count it, and that nothing is spent twice or forgotten."""

import errno
import io
import json
import math
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hospital import Hospital, Stub, done, hospital, with_policy
from opacus.accountants import PRVAccountant
from private import private
from rich.console import Console
from scipy.stats import norm
from tiny import one_stage, request, study, workers

from clients.data.site import Site
from clients.governance.accountant import ORDERS, Accountant, Charge, epsilon_of, renyi
from clients.governance.approval import approve
from clients.governance.approval_page import show
from clients.governance.policy import Policy
from clients.governance.proposal import propose
from clients.learning.training import TaskCancelled, TaskContext
from common.baseline import baseline_of
from common.errors import ContractError, RunError, SiteStateError, StudyError
from common.messages import EnrolReply, EnrolRequest, pack, unpack
from common.study import Study
from simulations.simulate import privacy_spent

STUDY = private(rounds=6)
FIRST, SECOND, THIRD = (request(STUDY, "pretrain", "source", step=step) for step in range(3))
OPEN = one_stage(source={"task": "supervise", "trains": ["source_branch"], "steps": 1})


def charge(rate: float, noise: float, steps: int) -> Charge:
    return Charge("a", "0" * 64, 0, rate, noise, steps)


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (2.0, 10), (5.0, 400), (20.0, 3)])
def test_without_sampling_epsilon_is_near_that_of_the_exact_gaussian_mechanism(noise: float, steps: int) -> None:
    """The delta of the Gaussian mechanism at epsilon is known (Balle and Wang 2018, theorem 8)."""
    mu = math.sqrt(steps) / noise
    grid = np.linspace(1e-3, 60, 600_000)
    delta = norm.cdf(mu / 2 - grid / mu) - np.exp(grid) * norm.cdf(-mu / 2 - grid / mu)
    exact = grid[np.argmax(delta <= 1e-5)]
    found = epsilon_of([charge(1.0, noise, steps)], 1e-5)
    assert exact < found < 1.12 * exact + 0.02
    # by hand: alpha * steps / (2 noise^2), turned into epsilon by Balle et al. 2020, theorem 21
    a = np.linspace(1.001, 1500, 2_000_000)
    by_hand = a * mu**2 / 2 + np.log((a - 1) / a) - (np.log(1e-5) + np.log(a)) / (a - 1)
    assert by_hand.min() <= found + 1e-9
    assert found == pytest.approx(by_hand.min(), rel=0.01, abs=0.005)


@pytest.mark.parametrize(("rate", "noise"), [(0.04, 2.0), (8 / 36, 1.0), (0.5, 0.7)])
@pytest.mark.parametrize("order", [1.5, 3.3, 8, 20])
def test_a_sampled_step_costs_what_numerical_integration_finds(rate: float, noise: float, order: float) -> None:
    """E over N(0, s^2) of ((1 - q) + q exp((2x - 1) / 2s^2))^a (Mironov et al. 2019, equation 2)."""
    x = np.linspace(-40 * noise, 40 * noise + 2 * order, 800_001)
    log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2))
    logs = norm.logpdf(x, scale=noise) + order * log_ratio
    divergence = (logs.max() + math.log(np.trapezoid(np.exp(logs - logs.max()), x))) / (order - 1)
    place = min(range(len(ORDERS)), key=lambda i: abs(ORDERS[i] - order))
    assert renyi(rate, noise)[place] == pytest.approx(divergence, rel=1e-4)


@pytest.mark.parametrize(("noise", "rate", "steps"), [(2.0, 8 / 200, 1000), (4.0, 8 / 60, 300), (1.0, 8 / 60, 100)])
def test_epsilon_is_not_below_that_of_an_accountant_of_another_kind(noise: float, rate: float, steps: int) -> None:
    other = PRVAccountant()  # composes privacy loss distributions, after Gopi et al. 2021
    other.history = [(noise, rate, steps)]
    tight = other.get_epsilon(1e-5)
    assert tight < epsilon_of([charge(rate, noise, steps)], 1e-5) < 1.25 * tight


def test_epsilon_adds_up_over_studies_grows_with_steps_and_falls_with_noise() -> None:
    one, two = charge(0.1, 2.0, 50), charge(0.2, 1.5, 10)
    assert epsilon_of([], 1e-5) == 0
    assert epsilon_of([one, one], 1e-5) == pytest.approx(epsilon_of([charge(0.1, 2.0, 100)], 1e-5))
    both = epsilon_of([one, two], 1e-5)
    assert max(epsilon_of([one], 1e-5), epsilon_of([two], 1e-5)) < both
    assert both < epsilon_of([one], 1e-5) + epsilon_of([two], 1e-5)
    assert epsilon_of([charge(0.1, 3.0, 50)], 1e-5) < epsilon_of([one], 1e-5) < epsilon_of([one], 1e-6)


def cost(of: Study, rounds: int) -> float:
    """The epsilon of a study's first rounds."""
    assert of.privacy is not None
    rate = of.privacy.sample_rate(of.batch_size)
    return epsilon_of([charge(rate, of.privacy.noise_multiplier, 2 * rounds)], of.privacy.delta)


def epsilons(north: Hospital) -> list[float | None]:
    return [entry["epsilon"] for entry in north.ledger() if entry["direction"] == "out"]


def test_the_ledger_has_the_epsilon_after_each_message_and_a_repeated_request_is_paid_once(
    tmp_path: Path, site: Site, stub: Stub
) -> None:
    north = hospital(tmp_path, site, STUDY)
    for payload in (pack(EnrolRequest(study=STUDY.hash())), FIRST, FIRST, SECOND, FIRST):
        north.worker.handle(payload)
    assert epsilons(north) == pytest.approx([0, cost(STUDY, 1), cost(STUDY, 1), cost(STUDY, 2), cost(STUDY, 2)])


def test_a_restart_and_another_study_go_on_with_what_was_spent(tmp_path: Path, site: Site, stub: Stub) -> None:
    other = private(rounds=6, name="other")
    north = hospital(tmp_path, site, STUDY, other)
    assert north.code(FIRST) == "ok"
    north = north.reopened()
    assert north.code(SECOND) == "ok"
    assert north.reopened().code(request(other, "pretrain", "source")) == "ok"
    assert epsilons(north)[-1] == pytest.approx(cost(STUDY, 3))
    north.state.start_over(STUDY.hash())  # the same request, with other noise, tells something new
    assert north.reopened().code(FIRST) == "ok"
    assert epsilons(north)[-1] == pytest.approx(cost(STUDY, 4))


@pytest.mark.parametrize("whose", ["study", "policy"])
def test_the_smaller_cap_stops_the_site_before_it_trains_and_says_so(
    whose: str, tmp_path: Path, site: Site, stub: Stub
) -> None:
    cap = (cost(STUDY, 2) + cost(STUDY, 3)) / 2
    of = private(rounds=6, epsilon_cap=cap) if whose == "study" else STUDY
    north = hospital(tmp_path, with_policy(site, epsilon_cap=cap if whose == "policy" else 999.0), of)
    first, second, third = (request(of, "pretrain", "source", step=step) for step in range(3))
    assert [north.code(payload) for payload in (first, second, third)] == ["ok", "ok", "privacy-budget-spent"]
    assert len(stub.ran) == 2
    north = north.reopened()
    assert north.code(third) == "privacy-budget-spent"
    assert "budget is spent" in north.answer(third).message  # type: ignore[attr-defined]
    assert done(north.answer(second)).round == 1  # what was paid for can still be had
    assert max(e for e in epsilons(north) if e is not None) <= cap


def test_a_reply_whose_price_cannot_be_written_down_does_not_leave(
    tmp_path: Path, site: Site, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    north = hospital(tmp_path, site, STUDY)

    def full(path: Path, content: bytes) -> None:
        raise SiteStateError(f"cannot write {path.name}: {os_error.strerror}")

    os_error = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr("clients.governance.accountant.write", full)
        assert north.code(FIRST) == "state-failed"
    assert north.code(FIRST) == "ok"
    assert epsilons(north) == pytest.approx([0, cost(STUDY, 1)])


def test_the_price_is_on_the_disk_before_the_reply_is_kept(
    tmp_path: Path, site: Site, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    north = hospital(tmp_path, site, STUDY)

    def killed(*_: object) -> None:
        assert len(json.loads(north.state.accountant.read_bytes())["charges"]) == 1
        raise RunError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr("clients.governance.state.State.keep_answer", killed)
        north.worker.handle(FIRST)
    assert Accountant(north.state.accountant).epsilon(1e-3) == pytest.approx(cost(STUDY, 1))


def spoilt(context: TaskContext) -> None:
    """What crafted weights can do to a training: it ends in numbers that no update may hold."""
    with torch.no_grad():
        next(context.networks.component(context.task.trains[0]).parameters()).fill_(float("nan"))


def test_a_private_round_that_fails_is_paid_for_and_closed(tmp_path: Path, site: Site, stub: Stub) -> None:
    north = hospital(tmp_path, site, STUDY)
    stub.during = spoilt
    assert north.code(FIRST) == "round-spent"
    assert epsilons(north)[-1] == pytest.approx(cost(STUDY, 1))
    other = request(STUDY, "pretrain", "source", prior=0.3)
    stub.during = lambda context: None
    for _ in range(2):
        assert north.code(other) == "round-answered"  # another request would be another look at the same patients
        assert north.code(FIRST) == "round-spent"
        north = north.reopened()
    assert len(stub.ran) == 1
    assert north.code(SECOND) == "ok"
    assert epsilons(north)[-1] == pytest.approx(cost(STUDY, 2))


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, StudyError, ContractError])
def test_every_failure_of_a_private_round_looks_alike(
    error: type[Exception], tmp_path: Path, site: Site, stub: Stub
) -> None:
    def fail(context: TaskContext) -> None:
        raise error("absurd-norm", "of patient 7") if error is ContractError else error("of patient 7")

    north = hospital(tmp_path, site, STUDY)
    stub.during = fail
    assert north.code(FIRST) == "round-spent"
    assert epsilons(north)[-1] == pytest.approx(cost(STUDY, 1))


def test_a_cancelled_private_round_is_paid_for_and_only_the_same_request_goes_on(
    tmp_path: Path, site: Site, stub: Stub
) -> None:
    def cancel(context: TaskContext) -> None:
        raise TaskCancelled

    north = hospital(tmp_path, site, STUDY)
    stub.during = cancel
    assert north.code(FIRST) == "cancelled"
    assert epsilons(north)[-1] == pytest.approx(cost(STUDY, 1))
    stub.during = lambda context: None
    north = north.reopened()
    assert north.code(request(STUDY, "pretrain", "source", prior=0.3)) == "round-answered"
    assert north.code(FIRST) == "ok"
    assert epsilons(north)[-1] == pytest.approx(cost(STUDY, 1))  # the very same look, paid once


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"version":2,"charges":[],"unbounded":[]}',
        b'{"version":1,"charges":[{"id":"a"}],"unbounded":[]}',
        b'{"version":1,"charges":[{"id":"a","study":"","round":0,"sample_rate":0,"noise_multiplier":1,"steps":1}]}',
    ],
)
def test_a_worker_does_not_start_on_a_damaged_accountant(content: bytes, tmp_path: Path, site: Site) -> None:
    north = hospital(tmp_path, site, STUDY)
    north.state.accountant.write_bytes(content)
    with pytest.raises(SiteStateError, match="damaged"):
        north.reopened()


def test_no_epsilon_is_told_where_none_holds(tmp_path: Path, site: Site, stub: Stub) -> None:
    north = hospital(tmp_path, site, OPEN, STUDY)
    assert north.code(FIRST) == "ok"
    assert north.code(request(OPEN, "only", "source")) == "ok"
    assert north.reopened().code(SECOND) == "ok"  # the same patients were told of without noise meanwhile
    assert epsilons(north) == [pytest.approx(cost(STUDY, 1)), None, None]


def test_a_site_declares_the_public_number_of_patients(tmp_path: Path, site: Site) -> None:
    north = hospital(tmp_path, site, STUDY)
    reply = north.answer(pack(EnrolRequest(study=STUDY.hash())))
    assert isinstance(reply, EnrolReply)
    assert reply.patients == 8 != len(site.patients("train"))


def test_a_policy_that_demands_privacy_takes_a_study_that_has_it() -> None:
    policy = Policy(privacy_required=True, epsilon_cap=1.0, max_delta=1e-3, min_update_draws=1)
    today = date(2026, 5, 1)
    assert policy.findings(STUDY, "source", today=today, sent_bytes={}) == []
    assert [f.code for f in policy.findings(OPEN, "source", today=today, sent_bytes={})] == ["privacy-required"] * 2
    policy.check_request(STUDY, "source", STUDY.stages[0].source)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="differential privacy"):
        policy.check_request(OPEN, "source", OPEN.stages[0].source)  # type: ignore[arg-type]


def page(of: Study, site: Site, accountant: Accountant | None = None) -> str:
    text = io.StringIO()
    console = Console(file=text, width=400)
    show(propose(of, site, today=date(2026, 5, 1), accountant=accountant), console)
    return text.getvalue()


def test_the_approval_tells_epsilon_after_a_round_at_the_end_and_where_the_cap_stops(
    tmp_path: Path, site: Site
) -> None:
    spent = Accountant()
    spent.spend(charge(0.5, 1.0, 2))
    text = page(STUDY, with_policy(site, epsilon_cap=cost(STUDY, 4.5 * 1)), spent)  # type: ignore[arg-type]
    for number in (cost(STUDY, 1), cost(STUDY, 2), cost(STUDY, 6), cost(STUDY, 7)):
        assert f"{number:.3f}" in text
    assert "your site stops after 3 of 6 training rounds" in text
    assert "has no differential privacy" not in text
    assert "closing evaluation" not in text
    assert "closing evaluation" in page(private(evaluation="outside"), site)
    spent.expose("0" * 64)
    assert "No epsilon bounds" in page(STUDY, site, spent)


def test_the_approval_of_a_study_without_privacy_names_no_epsilon(site: Site) -> None:
    text = page(OPEN, site)
    assert "psilon" not in text
    assert "has no differential privacy" in text


def test_an_approval_keeps_the_public_number(tmp_path: Path, site: Site) -> None:
    state = hospital(tmp_path, site).state
    assert approve(state, site, STUDY, by="anna").patients == 8


def test_a_simulated_site_stops_at_the_same_round_whichever_process_answers(pair: Sequence[Path]) -> None:
    cap = (cost(STUDY, 2) + cost(STUDY, 3)) / 2
    of = private(rounds=6, epsilon_cap=cap)
    requests = [request(of, "pretrain", "source", step=step) for step in range(4)]
    (one,) = workers(of, pair[:1])
    for payload, code in zip(requests, ("", "", "privacy-budget-spent", "privacy-budget-spent"), strict=True):
        (fresh,) = workers(of, pair[:1])
        reply = one.handle(payload)
        assert one.handle(payload) == fresh.handle(payload) == reply
        assert getattr(unpack(reply)[0], "code", "") == code


def test_a_simulations_summary_adds_the_baselines_epsilon() -> None:
    spent = privacy_spent(STUDY, baseline_of(STUDY))["privacy"]
    alone, both = spent["epsilon_at_most"]["study"], spent["epsilon_at_most"]["with_baseline"]
    steps = 2 * STUDY.supervised_steps()
    assert alone == pytest.approx({"source": cost(STUDY, 6), "target": cost(STUDY, 6)})
    assert both["target"] == alone["target"]  # a baseline asks nothing of it
    assert both["source"] >= cost(STUDY, steps // 2) > alone["source"]
    assert privacy_spent(OPEN, baseline_of(OPEN)) == {}


def test_the_example_in_the_documents_is_a_study() -> None:
    text = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")
    section = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    assert study(**section, stages=[STUDY.stages[0].model_dump()]).privacy is not None
