"""Signed messages: what a proxy, a SuperLink or a neighbour forges, swaps or replays is taken by nobody."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from finished import Finished
from hospital import Stub
from hypothesis import given
from hypothesis import strategies as st
from tiny import refusal, request, study

from clients.data.site import load_site
from clients.governance.approval import approve
from clients.governance.state import State
from clients.node.gatekeeper import Gatekeeper
from clients.node.refusals import refusal as sentence
from clients.node.simulated import answer, open_worker
from common.errors import ContractError, RunError
from common.messages import EnrolReply, EnrolRequest, TaskReply, pack, unpack
from common.options import KEYS_VARIABLE
from common.release import find_release
from common.run_folder import RunFolder
from common.signing import PUBLIC_KEY, RUN_BYTES, Sealed, key_of, make_keys, read_public_key, seal, text_of, unseal
from common.simulated import simulated_secret
from crossprobe import main
from server.history import read
from server.run import enrol, run_study
from server.signed import Keys, SignedTransport, admit, expel, keys_folder
from server.transport import Failure

STUDY = study()
OWN, FOREIGN = key_of(b"c" * 32), key_of(b"f" * 32)
ENROL = pack(EnrolRequest(study=STUDY.hash()))
FIRST = request(STUDY, "pretrain", "source")

Change = Callable[[str, bytes, bytes], bytes]


@dataclass
class Wire:
    """A `Transport` between a coordinator and guarded workers, on which somebody sits who replaces replies."""

    sites: Mapping[str, Gatekeeper]
    change: Change = lambda site, request, reply: reply
    sent: list[tuple[str, bytes, bytes]] = field(default_factory=list)

    def enrol(
        self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
    ) -> Mapping[str, bytes | Failure]:
        return {site: self._ask(site, request) for site in self.sites if site not in known}

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        for site, payload in requests.items():
            yield site, self._ask(site, payload)

    def _ask(self, site: str, payload: bytes) -> bytes:
        reply = self.sites[site].handle(payload)
        self.sent.append((site, payload, reply))
        return self.change(site, payload, reply)


@pytest.fixture
def sites(pair: Sequence[Path], tmp_path: Path) -> dict[str, Gatekeeper]:
    """Guarded workers of both sites, whose approvals name the coordinator's key."""
    found = {}
    for folder in pair:
        site = load_site(folder)
        name = site.config.name
        state = State.create(tmp_path / name, simulated_secret(STUDY, name))
        approve(state, site, STUDY, by="anna", coordinator=text_of(OWN.public_key()))
        found[name] = Gatekeeper(site, state, busy_wait_s=0.1)
    return found


def keys(sites: Mapping[str, Gatekeeper]) -> Keys:
    return Keys(OWN, {name: own.state.signing_key().public_key() for name, own in sites.items()}.get)


def asked(north: Gatekeeper, blob: bytes) -> str:
    """The code of a refusal, or `ok`."""
    return getattr(unpack(unseal(north.handle(blob)).payload)[0], "code", "ok")


def test_a_signed_run_gives_the_very_same_model(
    sites: dict[str, Gatekeeper], finished: Finished, tmp_path: Path
) -> None:
    wire = Wire(sites)
    run_study(STUDY, SignedTransport(wire, keys(sites)), tmp_path / "run", key=OWN)
    assert RunFolder(tmp_path / "run").model.read_bytes() == RunFolder(finished.run).model.read_bytes()
    find_release(tmp_path / "run", OWN.public_key())
    with pytest.raises(RunError, match="bad-signature"):
        find_release(tmp_path / "run", FOREIGN.public_key())
    assert all(unseal(blob).signature for _, *both in wire.sent for blob in both)


@pytest.mark.parametrize("payload", [ENROL, FIRST], ids=["enrolment", "task"])
def test_a_site_that_approved_a_key_answers_nobody_elses_requests(
    payload: bytes, sites: dict[str, Gatekeeper], stub: Stub
) -> None:
    north = sites["north"]
    assert asked(north, payload) == "not-signed"
    assert asked(north, seal(payload, FOREIGN, "request")) == "bad-signature"
    assert asked(north, seal(payload, north.state.signing_key(), "request")) == "bad-signature"
    assert asked(north, seal(payload, OWN, "reply")) == asked(north, seal(payload, OWN, "release")) == "bad-signature"
    assert stub.ran == []
    assert asked(north, seal(payload, OWN, "request")) == "ok"


def test_a_signature_of_one_request_is_of_no_other(sites: dict[str, Gatekeeper], stub: Stub) -> None:
    signature = unseal(seal(FIRST, OWN, "request")).signature
    later = request(STUDY, "adapt", "source")
    crafted = request(STUDY, "pretrain", "source", prior=0.9)
    for payload in (later, crafted):
        assert asked(sites["north"], seal(FIRST, OWN, "request")[: -len(FIRST)] + payload) == "bad-signature"
    assert signature
    assert stub.ran == []


def test_a_signed_request_that_comes_again_gets_the_same_reply_and_an_old_one_none(
    sites: dict[str, Gatekeeper], stub: Stub
) -> None:
    north, later = sites["north"], request(STUDY, "adapt", "source")
    first = north.handle(seal(FIRST, OWN, "request"))
    assert north.handle(seal(FIRST, OWN, "request")) == first
    assert len(stub.ran) == 1
    assert asked(north, seal(later, OWN, "request")) == "ok"
    assert asked(north, seal(FIRST, OWN, "request")) == "old-round"


def test_a_request_of_a_run_from_before_the_study_was_started_over_is_refused(
    sites: dict[str, Gatekeeper], stub: Stub
) -> None:
    north = sites["north"]
    first, second = b"1" * RUN_BYTES, b"2" * RUN_BYTES
    kept = seal(FIRST, OWN, "request", first)
    assert asked(north, kept) == "ok"
    for restarts in (1, 2):  # it is remembered over any number of starts
        north.state.start_over(STUDY.hash())
        assert asked(north, kept) == asked(north, seal(ENROL, OWN, "request", first)) == "old-run"
        assert len(stub.ran) == restarts
        other = kept.replace(first, second, 1)
        assert other != kept
        assert asked(north, other) == "bad-signature"
        assert asked(north, seal(FIRST, OWN, "request", bytes([restarts]) * RUN_BYTES)) == "ok"


def test_every_transport_is_another_run(sites: dict[str, Gatekeeper]) -> None:
    wires = Wire(sites), Wire(sites)
    for wire in wires:
        SignedTransport(wire, keys(sites)).enrol(ENROL)
    runs = {unseal(payload).run for wire in wires for _, payload, _ in wire.sent}
    assert len(runs) == 2


def test_an_old_enrolment_in_the_place_of_a_new_one_declares_nothing(sites: dict[str, Gatekeeper]) -> None:
    wire = Wire(sites)
    signed = SignedTransport(wire, keys(sites))
    assert enrol(STUDY, signed).keys() == sites.keys()
    old = {site: reply for site, _, reply in wire.sent}
    wire.change = lambda site, asked, reply: old[site] if site == "north" else reply
    with pytest.raises(RunError, match="north: old-reply"):
        enrol(STUDY, signed)


def forged(site: str, asked: bytes, reply: bytes) -> bytes:
    """A neighbour's reply in the place of `north`'s, to the very request, with a key of its own."""
    return seal(unseal(reply).payload, FOREIGN, "reply") if site == "north" else reply


def unsigned(site: str, asked: bytes, reply: bytes) -> bytes:
    return unseal(reply).payload if site == "north" else reply


def echoed(site: str, asked: bytes, reply: bytes) -> bytes:
    return asked if site == "north" else reply


@pytest.mark.parametrize(
    ("change", "code"), [(forged, "bad-signature"), (unsigned, "not-signed"), (echoed, "bad-signature")]
)
def test_a_reply_that_its_site_did_not_sign_never_counts(
    change: Change, code: str, sites: dict[str, Gatekeeper], stub: Stub, tmp_path: Path
) -> None:
    wire = Wire(sites)
    transport = SignedTransport(wire, keys(sites))
    assert transport.enrol(ENROL).keys() == {"north", "east"}
    wire.change = change
    found = dict(transport.exchange({"north": FIRST}, lambda site: "supervise", 1.0))["north"]
    assert isinstance(found, Failure)
    assert (found.code, found.detail.partition(":")[0]) == ("failed", code)


def test_sites_replies_cannot_be_swapped(sites: dict[str, Gatekeeper], stub: Stub) -> None:
    wire = Wire(sites)
    swap = {"north": "east", "east": "north"}
    wire.change = lambda site, asked, reply: sites[swap[site]].handle(asked)
    found = SignedTransport(wire, keys(sites)).enrol(ENROL)
    assert {site: reply.code for site, reply in found.items() if isinstance(reply, Failure)} == {
        "north": "failed",
        "east": "failed",
    }


def test_an_old_reply_in_the_place_of_a_new_one_is_named_in_the_history(
    sites: dict[str, Gatekeeper], tmp_path: Path
) -> None:
    wire, kept = Wire(sites), []

    def replayed(site: str, asked: bytes, reply: bytes) -> bytes:
        header = unpack(unseal(reply).payload)[0]
        if site == "north" and isinstance(header, TaskReply):
            kept.append(reply)
            if header.round == 1:
                return kept[0]
        return reply

    wire.change = replayed
    of = STUDY.model_copy(update={"participation": STUDY.participation.model_copy(update={"retries": 0})})
    with pytest.raises(RunError, match="fell short of quorum"):
        run_study(of, _resigned(wire, sites, of), tmp_path / "run")
    record = read(tmp_path / "run")[-1]
    assert record.sites["north"].detail.startswith("other-request")


def _resigned(wire: Wire, sites: Mapping[str, Gatekeeper], of: object) -> SignedTransport:
    """The transport, once the sites approved `of` instead."""
    for own in sites.values():
        approve(own.state, own.site, of, by="anna", coordinator=text_of(OWN.public_key()))  # type: ignore[arg-type]
    return SignedTransport(wire, keys(sites))


def test_an_app_that_cannot_reach_its_worker_still_says_so(sites: dict[str, Gatekeeper]) -> None:
    wire = Wire(sites, lambda site, asked, reply: pack(sentence("worker-unreachable")))
    found = SignedTransport(wire, keys(sites)).enrol(ENROL)["north"]
    assert isinstance(found, bytes)
    assert refusal(found).code == "worker-unreachable"


def test_a_site_whose_key_the_coordinator_does_not_have_is_not_taken(sites: dict[str, Gatekeeper]) -> None:
    known = keys(sites)
    transport = SignedTransport(Wire(sites), Keys(known.own, {"east": known.of_site("east")}.get))
    found = transport.enrol(ENROL)
    assert isinstance(found["north"], Failure)
    assert "there is no sites/north.pub" in found["north"].detail
    assert isinstance(unpack(found["east"])[0], EnrolReply)  # type: ignore[arg-type]


def test_a_coordinator_without_keys_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    with pytest.raises(RunError, match="study keygen"):
        keys_folder()


def test_simulated_sites_sign_and_want_signed_requests_too(pair: Sequence[Path], stub: Stub) -> None:
    north, known = open_worker(STUDY, pair[0]), Keys.simulated(STUDY)
    for request_, code in (
        (FIRST, "not-signed"),
        (seal(FIRST, OWN, "request"), "bad-signature"),
        (seal(FIRST, known.own, "reply"), "bad-signature"),
    ):
        assert refusal(unseal(answer(north, request_)).payload).code == code
    assert stub.ran == []
    sealed = unseal(answer(north, seal(FIRST, known.own, "request")))
    assert stub.ran == ["supervise"]
    key, other = known.of_site("north"), known.of_site("east")
    assert key is not None
    assert other is not None
    sealed.check(key, "reply")
    with pytest.raises(ContractError, match="bad-signature"):
        sealed.check(other, "reply")
    assert sealed.payload == north.handle(FIRST)  # the very bytes that leave without signatures


@given(blob=st.binary(max_size=120) | st.binary(max_size=120).map(lambda rest: b"XPRS" + rest))
def test_bytes_that_nobody_signed_pass_for_no_purpose(blob: bytes) -> None:
    for purpose in ("request", "reply", "release"):
        with pytest.raises(ContractError, match="signature"):
            unseal(blob).check(OWN.public_key(), purpose)  # type: ignore[arg-type]
    assert unseal(seal(blob, OWN, "reply")) == Sealed(blob, seal(blob, OWN, "reply")[4:68])


def test_keys_are_made_once_private_and_read_with_those_of_the_sites(
    tmp_path: Path, sites: dict[str, Gatekeeper], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "signing"
    public = make_keys(folder)
    assert read_public_key(folder / PUBLIC_KEY) == public
    assert (folder / "coordinator.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(RunError, match="is there already"):
        make_keys(folder)
    with pytest.raises(RunError, match="holds no site's key"):
        Keys.read(folder)
    north, east = (sites[name].state for name in ("north", "east"))
    assert main(["site", "signing-key", "--state", str(north.folder)]) == 0
    assert capsys.readouterr().out == north.public_key.read_text()
    admit(folder, "north", north.public_key)
    admit(folder, "north", north.public_key)
    with pytest.raises(RunError, match="holds another key"):
        admit(folder, "north", east.public_key)
    with pytest.raises(RunError, match="no site's name"):
        admit(folder, "../coordinator", east.public_key)
    assert Keys.read(folder).of_site("north") == north.signing_key().public_key()
    assert Keys.read(folder).of_site("east") is None
    expel(folder, "north")
    admit(folder, "north", east.public_key)
    assert Keys.read(folder).of_site("north") == east.signing_key().public_key()
    (folder / "coordinator.key").chmod(0o644)
    with pytest.raises(RunError, match="others can read"):
        Keys.read(folder)
