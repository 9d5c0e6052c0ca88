"""A name server, a proxy and a cable fail while a study runs. `make network-test`."""

import contextlib
import http.client
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from networked import PROXY, NetworkedFederation, five_rounds, missing
from tiny import write_study
from wire import Weather

from common.run_folder import RunFolder

pytestmark = [pytest.mark.network, pytest.mark.skipif(bool(missing()), reason=missing())]

#: Rounds of the study below: pretrain, refine four times, score, evaluate.
NO_NAMES_IN, BAD_GATEWAY_IN, SHORT_CUT_IN, LONG_CUT_IN, NO_SERVER_IN, FOR_GOOD_IN, ROUNDS = 0, 1, 2, 3, 4, 5, 7
#: Flower gives a SuperNode and a ServerApp up 60 s after the last sign of life, and an upload that has begun after
#: three minutes without one of its pieces; a request waits at most 30 s for its answer.
OUTAGE_S, SHORT_S, LONG_S = 45.0, 20.0, 120.0
#: An upload lasts some seconds, so that a cable can be cut in it.
NARROW = Weather(bits_per_s=1e5)
DEADLINE_S = 100.0


@dataclass
class Outcome:
    """What was left of the run.

    Attributes:
        gateway: what the proxy answered while the SuperLink was down.
        unanswered: how many questions for the coordinator's address were not answered.
        sent: round -> share of east's reply that was on the wire when it was cut.
        broken: exit code and words of `study run` if it ended once the SuperLink was away for long.
        ended: the same of the run once east did not come back.
        resumed: exit code of the run after that.
    """

    federation: NetworkedFederation
    gateway: int = 0
    unanswered: int = 0
    sent: dict[int, float] = field(default_factory=dict)
    broken: tuple[int, str] | None = None
    ended: tuple[int, str] = (0, "")
    resumed: int = -1


@pytest.fixture(scope="module")
def outcome(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    root = tmp_path_factory.mktemp("outages")
    patience = {"deadline_s": DEADLINE_S, "retries": 1}
    study = write_study(root / "study.yaml", stages=five_rounds(), participation=patience)
    with NetworkedFederation(root, study, pair) as federation:
        story = Outcome(federation)
        federation.start_coordinator()
        federation.register()
        federation.start_sites()
        with contextlib.ExitStack() as stack:
            running = stack.enter_context(federation.running())
            federation.wait(RunFolder(federation.run_folder).nodes.exists, "all sites are enrolled", 180)
            _names_go_away(story)
            _reach(story, BAD_GATEWAY_IN)
            _take_the_superlink_down(story, SHORT_S)
            _cut_in_mid_upload(story, SHORT_CUT_IN, SHORT_S)
            _cut_in_mid_upload(story, LONG_CUT_IN, LONG_S)
            _reach(story, NO_SERVER_IN)
            _take_the_superlink_down(story, LONG_S)
            over = running.poll
            federation.wait(
                lambda: over() is not None or _counted(story) > NO_SERVER_IN, "the run goes on, or ends", 600
            )
            if over() is not None:
                story.broken = (running.returncode, federation.said.read_text())
                running = stack.enter_context(federation.running("--resume"))
            _reach(story, FOR_GOOD_IN)
            federation.wires["east"].weather = Weather(cut=True)
            story.ended = (federation.ended(running, 6 * DEADLINE_S), federation.said.read_text())
        federation.wires["east"].weather = Weather()
        taken = federation.accepted("east")
        federation.kill("east-supernode")
        federation.wait(lambda: federation.accepted("east") > taken, "east is back", 240)
        with federation.running("--resume") as running:
            story.resumed = federation.ended(running, 300)
        yield story


def _reach(story: Outcome, index: int) -> None:
    """Wait for a round to begin."""
    story.federation.wait(lambda: _counted(story) >= index, f"round {index}", 400)
    assert _counted(story) == index


def _counted(story: Outcome) -> int:
    return sum(record.counted for record in story.federation.records())


def _names_go_away(story: Outcome) -> None:
    """Silence the name servers, and have the hospitals ask them, since the proxy they are connected to ends."""
    servers = story.federation.name_servers.values()
    for server in servers:
        server.silent = True
    story.federation.kill("coordinator-proxy")
    _last(story, OUTAGE_S)
    assert _counted(story) == NO_NAMES_IN
    story.unanswered = sum(server.unanswered for server in servers)
    for server in servers:
        server.silent = False


def _take_the_superlink_down(story: Outcome, seconds: float) -> None:
    """Take the SuperLink down and leave the proxy up, which then is a bad gateway."""
    story.federation.kill("coordinator-superlink")
    down = story.federation.processes.pop("coordinator-superlink")
    down.wait(10)
    story.gateway = _answer(story.federation)
    _last(story, seconds)
    story.federation.start("coordinator", "superlink")


def _answer(federation: NetworkedFederation) -> int:
    """Return how the proxy answers a SuperNode's question."""
    context = ssl.create_default_context(cafile=federation.coordinator / "ca.crt")
    context.check_hostname = False  # it is asked for by its address here
    connection = http.client.HTTPSConnection(
        federation.wires["east"].here, federation.proxy_port, timeout=10, context=context
    )
    connection.request("POST", "/v1/fleet/pull-messages", headers={"Host": PROXY})
    return connection.getresponse().status


def _cut_in_mid_upload(story: Outcome, index: int, seconds: float) -> None:
    """Cut east's wire once a third of its reply is on it."""
    _reach(story, index)
    federation = story.federation
    wire = federation.wires["east"]
    wire.weather = NARROW  # before the reply is there: a quick SuperNode has sent it between two looks

    def replied() -> int:
        """How many bytes of a reply in this round the worker gave away."""
        return sum(
            int(entry["bytes"])
            for entry in federation.ledger("east")
            if entry["round"] == index and entry["direction"] == "out"
        )

    federation.wait(replied, "the worker's reply", 240)
    before = wire.out.count["bytes"]
    federation.wait(lambda: wire.out.count["bytes"] - before > replied() / 3, "a third of the reply", 60)
    wire.weather = Weather(cut=True)
    story.sent[index] = (wire.out.count["bytes"] - before) / replied()
    _last(story, seconds)
    wire.weather = Weather()


def _last(story: Outcome, seconds: float) -> None:
    """Let time pass, as the restart policies do."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        story.federation.tend()
        time.sleep(0.2)


def _attempts(outcome: Outcome, index: int) -> list[tuple[bool, dict[str, str]]]:
    """Return each attempt at a round: whether it counted, and what became of each site."""
    return [
        (record.counted, {name: site.status for name, site in record.sites.items()})
        for record in outcome.federation.records()
        if record.round == index
    ]


def test_names_that_are_not_answered_are_waited_for(outcome: Outcome) -> None:
    assert outcome.unanswered > 0
    assert _attempts(outcome, NO_NAMES_IN)[-1] == (True, {"north": "ok", "east": "ok"})


def test_a_bad_gateway_is_waited_for(outcome: Outcome) -> None:
    assert outcome.gateway == 502
    assert _attempts(outcome, BAD_GATEWAY_IN)[-1] == (True, {"north": "ok", "east": "ok"})


def test_after_a_superlink_was_away_for_long_the_run_goes_on_or_says_what_to_do(outcome: Outcome) -> None:
    # which of both depends on who speaks first once it is back: the ServerApp, or who counts its signs of life
    code, said = outcome.broken or (1, "--resume")
    assert code == 1
    assert "--resume" in said
    assert "Traceback" not in said
    assert _attempts(outcome, NO_SERVER_IN)[-1] == (True, {"north": "ok", "east": "ok"})


def test_a_cable_cut_for_a_moment_in_mid_upload_costs_nothing(outcome: Outcome) -> None:
    assert 0.3 < outcome.sent[SHORT_CUT_IN] < 0.9
    assert _attempts(outcome, SHORT_CUT_IN) == [(True, {"north": "ok", "east": "ok"})]


def test_a_cable_cut_for_two_minutes_in_mid_upload_is_waited_for_beyond_the_deadline(outcome: Outcome) -> None:
    assert 0.3 < outcome.sent[LONG_CUT_IN] < 0.9
    assert _attempts(outcome, LONG_CUT_IN) == [(True, {"north": "ok", "east": "ok"})]
    (record,) = [record for record in outcome.federation.records() if record.round == LONG_CUT_IN]
    assert DEADLINE_S < LONG_S < record.sites["east"].seconds


def test_a_cable_cut_for_good_ends_the_run_with_the_name_of_who_is_missing(outcome: Outcome) -> None:
    code, said = outcome.ended
    assert code == 1
    assert f"round {FOR_GOOD_IN}" in said
    assert "east failed its SuperNode is gone" in " ".join(said.split())
    assert "--resume" in said
    assert "Traceback" not in said


def test_resumed_it_ends_with_the_bits_of_an_undisturbed_run_of_both_sites(outcome: Outcome, tmp_path: Path) -> None:
    assert outcome.resumed == 0
    counted = [record for record in outcome.federation.records() if record.counted]
    assert [record.round for record in counted] == list(range(ROUNDS))
    assert {site.status for record in counted for site in record.sites.values()} == {"ok"}
    assert RunFolder(outcome.federation.run_folder).model.read_bytes() == outcome.federation.undisturbed(tmp_path)
