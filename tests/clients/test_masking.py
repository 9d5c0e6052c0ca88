"""A hostile coordinator against a hospital whose updates are summed under masks: what it asks for, and what it gets."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hospital import Hospital, Stub, with_policy
from tiny import request, study, write_study

from clients.data.site import load_site
from clients.governance.approval import approval_of, approve
from clients.governance.dry_run import dry_run
from clients.governance.proposal import propose
from clients.governance.state import State
from clients.node.gatekeeper import Gatekeeper
from clients.node.masking import Masker
from common.errors import SiteStateError
from common.messages import (
    EnrolReply,
    EnrolRequest,
    Masking,
    MaskKey,
    Message,
    TaskReply,
    UnmaskReply,
    UnmaskRequest,
    unpack,
)
from common.signing import certify, key_of, text_of
from crossprobe import main

TODAY = date(2026, 5, 1)
STUDY = study(participation={"quorum": {"source": 1, "target": 3}}, secure_aggregation=["target"])
BARE = study(name="bare")
NAMES = ("mid", "south", "west")


def peer(name: str) -> Masker:
    secret = name.encode().ljust(32, b".")
    return Masker(name, STUDY.hash(), secret, key_of(secret))


PEERS = {name: peer(name) for name in NAMES}
KEYS = {name: text_of(own.signing_key.public_key()) for name, own in PEERS.items()}


@dataclass
class East:
    """The hospital `east`, which approved the keys of three others, and a coordinator's means to talk to it."""

    hospital: Hospital
    own: Masker

    def masking(self, *names: str, **changes: Any) -> Masking:
        keys = {own.site: own.mask_key() for own in (self.own, *(PEERS[name] for name in names or NAMES))}
        return Masking(keys=dict(sorted(keys.items())), patients=40).model_copy(update=changes)

    def asked(self, masking: Masking | None, of: Any = STUDY) -> Message:
        plain = Message.parse(request(of, "pretrain", "target"))
        return Message.of(plain.header.model_copy(update={"masking": masking}), plain.tensors)

    def ask(self, message: Message) -> Message:
        return Message.parse(self.hospital.worker.handle(message.payload))

    def code(self, message: Message) -> str:
        return getattr(self.ask(message).header, "code", "ok")

    def unmask(self, asked: Message, arrived: Mapping[str, str], **changes: Any) -> Message:
        header = UnmaskRequest(
            study=STUDY.hash(),
            round=0,
            task="self_supervise",
            request=asked.sha256,
            masking=self.masking(),
            shares=arrived,
        )
        return Message.of(header.model_copy(update=changes))

    def shares(self, asked: Message, *names: str) -> dict[str, str]:
        """What the sites named sealed for `east`, itself included."""
        header = self.ask(asked).header
        assert isinstance(header, TaskReply)
        masking = asked.header.masking  # type: ignore[union-attr]
        assert masking is not None
        sealed = {name: PEERS[name].masked({}, 6, masking, asked.sha256)[1]["east"] for name in names}
        return {"east": header.shares["east"], **sealed}


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def east(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub: Stub) -> East:
    stub.install(monkeypatch)
    state, site = State.create(tmp_path / "east", b"e" * 32), load_site(pair[1])
    approve(state, site, STUDY, by="anna", sites=KEYS)
    approve(state, site, BARE, by="anna")
    own = Masker("east", STUDY.hash(), state.secret(0), state.signing_key())
    return East(Hospital(site, state, Gatekeeper(site, state, busy_wait_s=0.1)), own)


def test_a_worker_that_runs_takes_the_keys_of_a_later_approval(east: East) -> None:
    state, site = east.hospital.state, east.hospital.site
    approve(state, site, STUDY, by="anna", sites={name: KEYS[name] for name in ("mid", "south")})
    assert east.code(east.asked(east.masking())) == "unknown-site"
    approve(state, site, STUDY, by="anna", sites=KEYS)
    assert east.code(east.asked(east.masking())) == "ok"


def test_an_update_is_asked_for_and_helped_with_once(east: East) -> None:
    asked = east.asked(east.masking())
    arrived = east.shares(asked, *NAMES)
    first = east.ask(east.unmask(asked, arrived)).header
    assert isinstance(first, UnmaskReply)
    assert first.shares.keys() == {"east", *NAMES}
    assert first.seeds == {}
    again = east.ask(east.unmask(asked, arrived)).header
    assert isinstance(again, UnmaskReply)
    assert again.shares == first.shares
    kinds = [line["kind"] for line in east.hospital.ledger() if line["direction"] == "out"]
    assert kinds == ["done", "unmasked", "unmasked"]


def test_a_second_list_is_refused_also_after_a_restart(east: East) -> None:
    asked = east.asked(east.masking())
    everybody = east.shares(asked, *NAMES)
    assert east.code(east.unmask(asked, everybody)) == "ok"
    fewer = {name: share for name, share in everybody.items() if name != "west"}
    assert east.code(east.unmask(asked, fewer)) == "other-survivors"
    east.hospital = east.hospital.reopened()
    assert east.code(east.unmask(asked, fewer)) == "other-survivors"
    assert east.code(east.unmask(asked, everybody)) == "ok"


def test_another_list_of_those_who_were_asked_is_refused_before_and_after_the_sum(east: East) -> None:
    """Each would lay the mask with one more hospital bare, of the same survivors, until nothing hides the update."""
    asked = east.asked(east.masking())
    arrived = {name: share for name, share in east.shares(asked, *NAMES).items() if name != "west"}
    for _ in range(2):
        for others in (("mid", "south"), ("mid", "west")):
            shares = {name: share for name, share in arrived.items() if name in ("east", *others)}
            assert east.code(east.unmask(asked, shares, masking=east.masking(*others))) == "other-sites"
        more = east.masking(patients=41)
        assert east.code(east.unmask(asked, east.shares(asked, *NAMES), masking=more)) == "other-sites"
        assert east.code(east.unmask(asked, east.shares(asked, *NAMES))) == "ok"
        east.hospital = east.hospital.reopened()


def test_a_key_to_agree_with_nobody_on_is_refused_before_anything_is_paid_or_looked_at(east: East, stub: Stub) -> None:
    west, key = PEERS["west"], bytes(32)
    zero = MaskKey(key=key.hex(), signature=certify("west", STUDY.hash(), key, west.signing_key).hex())
    keys = east.masking().keys | {"west": zero}  # the hospital west signed it itself
    assert east.code(east.asked(Masking(keys=keys, patients=40))) == "bad-mask-key"
    assert stub.ran == []


def test_whoever_restores_an_old_record_to_help_twice_is_stopped(east: East) -> None:
    asked = east.asked(east.masking())
    arrived = east.shares(asked, *NAMES)
    before = east.hospital.state.answered(STUDY.hash())
    assert east.code(east.unmask(asked, arrived)) == "ok"
    east.hospital.state.keep_answer(STUDY.hash(), before)
    with pytest.raises(SiteStateError, match="ends with round 0, the ledger with round 0"):
        east.hospital.reopened()


def test_a_bare_update_is_refused_where_masks_were_approved_and_the_other_way_round(east: East) -> None:
    assert east.code(east.asked(None)) == "other-masking"
    assert east.code(east.asked(east.masking(), BARE)) == "other-masking"


def test_invented_sites_are_refused(east: East) -> None:
    sybil = Masker("sybil", STUDY.hash(), b"y" * 32, key_of(b"y" * 32))
    keys = east.masking().keys
    assert east.code(east.asked(Masking(keys=keys | {"sybil": sybil.mask_key()}, patients=40))) == "unknown-site"
    # The name of a hospital that was approved, with a key of the coordinator's own.
    forged = replace(sybil, site="west")
    assert east.code(east.asked(Masking(keys=keys | {"west": forged.mask_key()}, patients=40))) == "bad-signature"
    other_study = replace(PEERS["west"], study_hash="0" * 64)
    assert east.code(east.asked(Masking(keys=keys | {"west": other_study.mask_key()}, patients=40))) == "bad-signature"


def test_too_few_sites_are_refused_and_so_is_another_key_for_this_one(east: East) -> None:
    assert east.code(east.asked(east.masking("west"))) == "too-few-summed"
    keys = east.masking().keys | {"east": PEERS["west"].mask_key()}
    assert east.code(east.asked(Masking(keys=keys, patients=40))) == "bad-mask-key"


def test_help_is_given_only_to_updates_that_were_sent(east: East) -> None:
    asked = east.asked(east.masking())
    arrived = east.shares(asked, *NAMES)
    assert east.code(east.unmask(asked, {n: s for n, s in arrived.items() if n != "west"})) == "too-few-summed"
    other = east.asked(east.masking(), STUDY)
    other = Message.of(other.header.model_copy(update={"foreground_prior": 0.9}), other.tensors)
    stranger = PEERS["west"].masked({}, 6, east.masking(), other.sha256)[1]["east"]
    assert east.code(east.unmask(asked, arrived | {"west": stranger})) == "bad-share"  # of another request
    assert east.code(east.unmask(asked, arrived | {"west": "00" * 48})) == "bad-share"  # of nobody
    assert east.code(east.unmask(asked, arrived | {"sybil": "00" * 48})) == "unknown-site"
    alone = {name: share for name, share in arrived.items() if name != "east"}
    assert east.code(east.unmask(asked, alone)) == "too-few-summed"
    assert east.code(east.unmask(other, arrived)) == "other-request"
    assert not east.hospital.state.answered(STUDY.hash()).survivors
    assert east.code(east.unmask(asked, arrived)) == "ok"


def test_before_its_update_left_a_site_helps_with_nothing(east: East) -> None:
    asked = east.asked(east.masking())
    nothing = dict.fromkeys(("east", *NAMES), "00" * 48)
    assert east.code(east.unmask(asked, nothing)) == "other-request"


def test_an_unapproved_study_gets_no_help(east: East) -> None:
    asked = east.asked(east.masking())
    assert east.code(east.unmask(asked, {}, study="1" * 64)) == "not-approved"


def test_a_sum_that_could_overflow_is_refused_before_an_image_is_looked_at(east: East, stub: Stub) -> None:
    """Were it refused by the update's own size, the patients of a request would ask for that size."""
    assert east.code(east.asked(east.masking(patients=2**40))) == "absurd-norm"
    assert stub.ran == []
    most = 2**62 // 2**32 // int(STUDY.participation.max_norm)  # patients, whatever the update is
    assert east.code(east.asked(east.masking(patients=most + 1))) == "absurd-norm"
    assert stub.ran == []
    assert east.code(east.asked(east.masking(patients=most - 1))) == "ok"


def test_a_sum_of_fewer_sites_than_the_page_says_is_refused(east: East, stub: Stub) -> None:
    of = study(participation={"quorum": {"source": 1, "target": 4}}, secure_aggregation=["target"])
    others = {name: Masker(name, of.hash(), own.secret, own.signing_key) for name, own in PEERS.items()}
    approve(east.hospital.state, east.hospital.site, of, by="anna", sites=KEYS)
    own = Masker("east", of.hash(), east.own.secret, east.own.signing_key)
    every = {site.site: site.mask_key() for site in (own, *others.values())}
    few = {name: key for name, key in every.items() if name != "west"}
    for keys, code in ((few, "too-few-summed"), (every, "ok")):
        assert east.code(east.asked(Masking(keys=dict(sorted(keys.items())), patients=40), of)) == code
    assert len(stub.ran) == 1


def test_an_approval_needs_the_others_keys(east: East) -> None:
    site, state = east.hospital.site, east.hospital.state
    for sites in ({}, {"west": KEYS["west"]}, {"west": KEYS["west"], "east": KEYS["mid"]}):
        with pytest.raises(SiteStateError, match="their keys are given"):
            approve(state, site, STUDY, by="anna", sites=sites)
    known = approval_of(state, STUDY.hash())
    assert known is not None
    assert known.sites == KEYS


def test_a_policy_can_ask_for_sums(east: East) -> None:
    careful = with_policy(east.hospital.site, min_summed_sites=3)
    assert "policy-summed-sites" not in {f.code for f in propose(STUDY, careful, today=TODAY).findings}
    said = propose(STUDY, careful, today=TODAY).warnings[-1]
    assert "learns no single target hospital's updates" in said
    assert "the difference of the two sums is about that hospital's part" in said
    assert "sees each site's updates" in propose(BARE, careful, today=TODAY).warnings[-1]
    found = [f for f in propose(BARE, careful, today=TODAY).findings if f.code == "policy-summed-sites"]
    assert found
    assert "expected sums of the updates of at least 3 sites, found 1" in found[0].message
    more = with_policy(east.hospital.site, min_summed_sites=4)
    assert "policy-summed-sites" in {f.code for f in propose(STUDY, more, today=TODAY).findings}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"batch_size": 5}, "whole-batches"),
        ({"augmentation": {"flip": False, "scale": 0, "rotation_deg": 0, "shift": 0}}, "same-views"),
    ],
)
def test_rounds_that_train_alike_whoever_is_drawn_are_no_masked_study(
    changes: dict[str, Any], code: str, east: East
) -> None:
    """Two of them, the second without one hospital, would give that hospital's update by itself."""
    quorum = {"quorum": {"source": 1, "target": 3}}
    masked = study(participation=quorum, secure_aggregation=["target"], **changes)
    assert code in {finding.code for finding in propose(masked, east.hospital.site, today=TODAY).findings}
    bare = study(participation=quorum, **changes)
    assert code not in {finding.code for finding in propose(bare, east.hospital.site, today=TODAY).findings}


def test_enough_sites_are_counted_at_each_request(east: East) -> None:
    site = with_policy(east.hospital.site, min_summed_sites=4)
    approve(east.hospital.state, site, STUDY, by="anna", sites=KEYS)
    east.hospital = east.hospital.reopened(site)
    assert east.code(east.asked(east.masking("west", "mid"))) == "policy-summed-sites"


def test_the_page_says_with_whom_and_what_it_is_worth(
    east: East, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(
        tmp_path / "study.yaml", participation={"quorum": {"source": 1, "target": 3}}, secure_aggregation=["target"]
    )
    folder = tmp_path / "keys"
    folder.mkdir()
    for name, key in KEYS.items():
        (folder / f"{name}.pub").write_text(key + "\n", encoding="utf-8")
    command = ["site", "approve", str(file), "--site", str(pair[1]), "--state", str(east.hospital.state.folder)]
    assert main([*command, "--yes"]) == 1
    out = capsys.readouterr()
    assert "their keys are not given" in out.out.replace("\n", " ")
    assert "--site-keys" in out.err
    assert main([*command, "--yes", "--site-keys", str(folder)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "learns the sum over at least 3 target hospitals, and yours alone only if others of these help it" in text
    assert text.count("SHA256:") >= len(KEYS) or all(f" {name} " in text for name in KEYS)


def test_a_dry_run_shows_what_leaves_under_masks(east: East, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stub(metrics={}).install(monkeypatch)
    sent = dry_run(STUDY, east.hospital.site, east.hospital.state, tmp_path / "dry")
    assert {message.answer for message in sent} == {"ok"}
    header, tensors = unpack((tmp_path / "dry" / sent[1].file).read_bytes())
    assert isinstance(header, TaskReply)
    assert len(header.shares) == 3
    assert {x.dtype for x in tensors.values()} == {np.dtype(np.uint64)}


def test_the_enrolment_brings_the_key_that_the_others_check(east: East) -> None:
    header = east.ask(Message.of(EnrolRequest(study=STUDY.hash()))).header
    assert isinstance(header, EnrolReply)
    assert header.mask_key == east.own.mask_key()
    plain = east.ask(Message.of(EnrolRequest(study=BARE.hash()))).header
    assert isinstance(plain, EnrolReply)
    assert plain.mask_key is None
