"""Sums under masks: the bits of the plain sum, whoever is missing, and at the server nothing of a single site."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import enrolled, round_of, same, study, workers, write_site

from clients.node.worker import Worker
from common.errors import RunError, StudyError
from common.messages import MaskKey, Message, TaskReply, TaskRequest, UnmaskReply, UnmaskRequest, pack, unpack
from common.run_folder import RunFolder
from server.algorithm import init
from server.history import RoundRecord, read, state_of
from server.rounds import run_round
from server.run import enrol, initial_components, run_study
from server.state import ServerState
from server.survivors import Survivors
from server.transport import Failure
from simulations.local import LocalTransport

QUORUM = {"quorum": {"source": 1, "target": 3}, "deadline_s": 0.2}
PLAIN = study(participation=QUORUM)
SECURE = study(participation=QUORUM, secure_aggregation=["target"])
ROUND = round_of(SECURE, "pretrain")
TARGETS = ("c", "d", "e", "f", "g")
ZERO = MaskKey(key="0" * 64, signature="0" * 128)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A source and five targets, whose patient counts differ."""
    root, few = tmp_path_factory.mktemp("many"), {"train": 6, "calibrate": 5, "val": 5, "test": 5}
    targets = [
        write_site(root / name, "target", seed=seed, gain=0.7, patients=few | {"train": 6 + seed})
        for seed, name in enumerate(TARGETS)
    ]
    return [write_site(root / "a", "source", seed=9), *targets]


@pytest.fixture(scope="module")
def plain(folders: Sequence[Path]) -> list[Worker]:
    return workers(PLAIN, folders)


@pytest.fixture(scope="module")
def secure(folders: Sequence[Path]) -> list[Worker]:
    return workers(SECURE, folders)


class Wire(LocalTransport):
    """Between server and workers: keeps what passes, and loses the updates and the help of whom it is told."""

    def __init__(
        self, known: Sequence[Worker], *, silent: Collection[str] = (), helpless: Collection[str] = ()
    ) -> None:
        super().__init__(known)
        self.silent, self.helpless = set(silent), set(helpless)
        self.change: Callable[[str, bytes], bytes] = lambda site, reply: reply
        self.replies: dict[str, bytes] = {}
        self.helped: list[str] = []

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        for site, request in requests.items():
            asked = unpack(request)[0]
            if site in (self.helpless if isinstance(asked, UnmaskRequest) else self.silent):
                yield site, Failure("late", "no reply")
                continue
            reply = self.change(site, self.workers[site].handle(request))
            if isinstance(asked, UnmaskRequest):
                self.helped.append(site)
            else:
                self.replies[site] = reply
            yield site, reply


def begin(known: Sequence[Worker]) -> ServerState:
    of = known[0].study
    return init(of, enrol(of, LocalTransport(known)), initial_components(of))


def once(
    known: Sequence[Worker], wire: Wire | None = None, survivors: Survivors | None = None
) -> tuple[ServerState, RoundRecord]:
    return run_round(known[0].study, begin(known), ROUND, wire or Wire(known), survivors)


def without(known: Sequence[Worker], *names: str) -> list[Worker]:
    return [worker for worker in known if worker.site.config.name not in names]


def test_the_sum_is_the_plain_one_bit_for_bit_and_so_is_every_number(
    plain: Sequence[Worker], secure: Sequence[Worker]
) -> None:
    (bare, seen), (masked, record) = once(plain), once(secure)
    assert record.counted
    assert same(masked.components, bare.components)
    assert {name: site.metrics for name, site in record.sites.items()} == {
        name: site.metrics for name, site in seen.sites.items()
    }


def test_the_server_sees_nothing_of_a_single_update(plain: Sequence[Worker], secure: Sequence[Worker]) -> None:
    open_, masked = Wire(plain), Wire(secure)
    once(plain, open_), once(secure, masked)
    for site in TARGETS:
        bare, hidden = unpack(open_.replies[site])[1], unpack(masked.replies[site])[1]
        for name, update in bare.items():
            seen = hidden[name].view(np.int64).astype(np.float64).ravel()
            if update.size > 500 and update.std() > 0:
                assert abs(np.corrcoef(update.ravel(), seen)[0, 1]) < 6 / np.sqrt(update.size)
    assert unpack(masked.replies["a"])[1]["source_branch.decoder/final_conv.bias"].dtype == np.float32


@pytest.mark.parametrize("lost", ["c", "e", "g"])
def test_a_site_that_is_away_is_taken_out_of_the_sum(
    lost: str, plain: Sequence[Worker], secure: Sequence[Worker]
) -> None:
    bare, _ = once(plain, Wire(plain, silent=[lost]))
    wire = Wire(secure, silent=[lost])
    masked, record = once(secure, wire)
    assert record.counted
    assert record.sites[lost].status == "late"
    assert same(masked.components, bare.components)
    assert sorted(wire.helped) == sorted({*TARGETS} - {lost})


def test_a_site_that_goes_after_it_sent_is_still_in_the_sum(plain: Sequence[Worker], secure: Sequence[Worker]) -> None:
    masked, record = once(secure, Wire(secure, helpless=["d"]))
    assert record.counted
    assert same(masked.components, once(plain)[0].components)


def test_too_few_updates_are_not_summed_and_nobody_is_asked_to_help(secure: Sequence[Worker]) -> None:
    wire = Wire(secure, silent=["c", "d"])
    state, record = once(secure, wire)
    assert not record.counted
    assert not wire.helped
    assert "3 updates of target sites came, a sum under masks needs 4" in record.sites["e"].detail
    assert same(state.components, begin(secure).components)


def test_a_round_that_broke_off_in_the_middle_goes_on_with_the_same_sites(
    tmp_path: Path, plain: Sequence[Worker], secure: Sequence[Worker]
) -> None:
    file = tmp_path / "survivors.json"
    _, first = once(secure, Wire(secure, silent=["c"], helpless=["d"]), Survivors(file))
    assert not first.counted
    assert first.sites["e"].status == "unused"
    assert state_of(first.sites["e"], 0.0)[0] == "in"  # it did its part; who is away is lost
    assert "no help with the sum from d" in first.sites["e"].detail
    # The server was killed meanwhile. Now all are there, but the others have helped without c and do so only once.
    masked, second = once(secure, Wire(secure), Survivors(file))
    assert second.counted
    assert "c" not in second.sites
    assert same(masked.components, once(plain, Wire(plain, silent=["c"]))[0].components)


def test_a_run_under_masks_ends_with_the_plain_model_also_after_a_restart(
    tmp_path: Path, plain: Sequence[Worker], secure: Sequence[Worker]
) -> None:
    class Falls(Wire):
        left = 3

        def exchange(
            self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
        ) -> Iterator[tuple[str, bytes | Failure]]:
            if any(isinstance(unpack(request)[0], UnmaskRequest) for request in requests.values()):
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt
            return super().exchange(requests, task, deadline_s)

    few = [*plain[:4]], [*secure[:4]]
    state = run_study(PLAIN, LocalTransport(few[0]), tmp_path / "plain")
    with pytest.raises(KeyboardInterrupt):
        run_study(SECURE, Falls(few[1]), tmp_path / "secure")
    masked = run_study(SECURE, LocalTransport(few[1]), tmp_path / "secure", resume=True)
    assert same(masked.components, state.components)
    assert [record.counted for record in read(RunFolder(tmp_path / "secure").path)] == [True] * len(SECURE.rounds())


def forged(reply: bytes, **changes: object) -> bytes:
    header, tensors = unpack(reply)
    return Message.of(header.model_copy(update=changes), tensors).payload


@pytest.mark.parametrize(
    "change",
    [
        lambda reply: forged(reply, shares={}),
        lambda reply: (
            Message.of(unpack(reply)[0], {n: x.astype(np.float32) for n, x in unpack(reply)[1].items()}).payload
        ),
        lambda reply: Message.of(unpack(reply)[0], {n: x[:1] for n, x in unpack(reply)[1].items()}).payload,
    ],
    ids=["no shares", "float32", "another shape"],
)
def test_a_malformed_masked_reply_costs_its_sender_alone(
    change: Callable[[bytes], bytes], plain: Sequence[Worker], secure: Sequence[Worker]
) -> None:
    wire = Wire(secure)
    wire.change = lambda site, reply: (
        change(reply) if site == "d" and isinstance(unpack(reply)[0], TaskReply) else reply
    )
    masked, record = once(secure, wire)
    assert record.sites["d"].status == "refused"
    assert record.counted
    assert same(masked.components, once(plain, Wire(plain, silent=["d"]))[0].components)


def lying(part: str, value: str) -> Callable[[str, bytes], bytes]:
    """What `d` makes of its help: each share, or each seed, is this value."""

    def lie(site: str, reply: bytes) -> bytes:
        header = unpack(reply)[0]
        if site != "d" or not isinstance(header, UnmaskReply):
            return reply
        return forged(reply, **{part: dict.fromkeys(getattr(header, part), value)})

    return lie


def test_a_site_that_helps_wrongly_stops_the_sum_and_spoils_none(secure: Sequence[Worker]) -> None:
    wire = Wire(secure)
    wire.change = lying("shares", "0" * 63 + "7")
    state, record = once(secure, wire)
    assert not record.counted
    assert "bad-share" in record.sites["c"].detail
    assert same(state.components, begin(secure).components)


def test_a_seed_of_another_length_is_no_help_and_ends_no_run(secure: Sequence[Worker]) -> None:
    wire = Wire(secure, silent=["c"])
    wire.change = lying("seeds", "07" * 15)
    _, record = once(secure, wire)
    assert not record.counted
    assert "no help with the sum from d" in record.sites["e"].detail


def test_a_sum_that_a_site_spoiled_does_not_count_and_leaves_the_model_alone(secure: Sequence[Worker]) -> None:
    wire = Wire(secure, silent=["c"])
    wire.change = lying("seeds", "07" * 16)
    state, record = once(secure, wire)
    assert not record.counted
    assert "absurd-norm" in record.sites["e"].detail
    assert same(state.components, begin(secure).components)


def test_a_site_without_a_key_is_not_enrolled(secure: Sequence[Worker]) -> None:
    class Keyless(LocalTransport):
        def enrol(
            self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
        ) -> Mapping[str, bytes | Failure]:
            found = super().enrol(request, known)
            return {site: forged(reply, mask_key=None) for site, reply in found.items()}

    with pytest.raises(RunError, match="no-mask-key: the site gives no key to sum its updates under masks with"):
        enrol(SECURE, Keyless(secure))


def test_a_site_with_a_key_to_agree_with_nobody_on_is_not_enrolled(
    secure: Sequence[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    class Zero(LocalTransport):
        def enrol(
            self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
        ) -> Mapping[str, bytes | Failure]:
            found = super().enrol(request, known)
            return {site: forged(reply, mask_key=ZERO) if site == "d" else reply for site, reply in found.items()}

    with caplog.at_level("WARNING", "crossprobe.server"):
        assert enrol(SECURE, Zero(secure)).keys() == {"a", "c", "e", "f", "g"}
    assert "not enrolled: d: bad-mask-key" in caplog.text


def test_a_study_without_masks_sends_what_it_always_did(plain: Sequence[Worker]) -> None:
    reply = plain[1].handle(Message.of(TaskRequest(study=PLAIN.hash(), round=0, stage="x", task="y")).payload)
    declared = enrol(PLAIN, LocalTransport(plain))["c"]
    assert declared.mask_key is None
    for word in (b"mask", b"shares"):
        assert word not in reply
        assert word not in Message.of(enrolled(site="c", role="target")).payload


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"secure_aggregation": ["target"]}, "needs participation.quorum to be 3 or more for target"),
        ({"secure_aggregation": ["source"], "participation": QUORUM}, "3 or more for source"),
        ({"secure_aggregation": ["nobody"], "participation": QUORUM}, "secure_aggregation"),
    ],
)
def test_studies_that_cannot_be_summed_under_masks(changes: dict[str, object], match: str) -> None:
    with pytest.raises(StudyError, match=match):
        study(**changes)


def test_only_the_mean_can_be_summed_under_masks() -> None:
    stage = {"name": "only", "rounds": 1, "aggregator": "trimmed_mean",
             "source": {"task": "supervise", "trains": ["source_branch"], "steps": 2}}  # fmt: skip
    with pytest.raises(StudyError, match="only a sum is known"):
        study(stages=[stage], participation=QUORUM, secure_aggregation=["target"])


def test_a_damaged_file_of_survivors_is_named(tmp_path: Path) -> None:
    file = tmp_path / "survivors.json"
    file.write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="is damaged: with whose updates"):
        Survivors(file)


def test_participants_keep_their_keys_over_a_restart(tmp_path: Path, secure: Sequence[Worker]) -> None:
    from server.state import load_state, save_state

    state = begin(secure)
    save_state(tmp_path, state, SECURE.hash())
    loaded = load_state(tmp_path, SECURE.hash())
    assert loaded is not None
    assert loaded.participants == replace(state).participants


def test_a_study_whose_sum_might_overflow_is_refused_before_its_first_round(
    secure: Sequence[Worker], folders: Sequence[Path], tmp_path: Path
) -> None:
    class Large(LocalTransport):
        def enrol(
            self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
        ) -> Mapping[str, bytes | Failure]:
            def large(payload: bytes) -> bytes:
                return pack(unpack(payload)[0].model_copy(update={"patients": 300_000}))

            return {
                site: large(payload) for site, payload in super().enrol(request).items() if isinstance(payload, bytes)
            }

    with pytest.raises(
        RunError, match=r"max_norm is 1000, and the target sites declare 1500000 patients.*patients_cap"
    ):
        run_study(SECURE, Large(secure), tmp_path / "run")
    capped = study(participation=QUORUM | {"patients_cap": 200_000}, secure_aggregation=["target"])
    assert {one.patients for one in enrol(capped, Large(workers(capped, folders))).values()} == {200_000}
