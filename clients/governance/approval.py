"""A hospital's yes to one study: who gave it, when, and exactly what it is bound to.

It holds the site's own copy of the study, from which the worker takes every setting. It is void as soon
as the site's policy, name or role, the study, or the software's major or minor version is another.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from clients.data.findings import Finding
from clients.data.site import Site, SiteConfig
from clients.governance.decisions import Decision, record
from clients.governance.state import State, write
from common.errors import SiteStateError, StudyError
from common.fingerprint import fingerprint
from common.masking import LEAST_SITES
from common.signing import public_key_of
from common.strict_text import parse_json
from common.study import Study, parse_study
from common.version import approved_line, software_version

VERSION = 1


@dataclass(frozen=True)
class Approval:
    """One approval.

    Attributes:
        by, when: who approved, by name, and when (UTC, ISO 8601).
        second: the other person, where the policy asks for two; empty until then.
        study, study_hash: the approved study, with every default written out.
        policy_hash, site, role, software: what it was approved for; see `void`.
        patients: training patients as declared at the study's first approval here. A count that followed the folder
            would tell when a patient came or went, and a sum under masks has the first one within it.
        coordinator: public key that signs the study's requests, in one line; empty: they need no signature.
        sites: the signing keys of the other sites, by name, where updates are summed under masks with theirs.
    """

    by: str
    when: str
    study: Study
    study_hash: str
    policy_hash: str
    site: str
    role: str
    software: str
    patients: int
    coordinator: str = ""
    second: str = ""
    sites: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> str:
        """Who approved, one name or two."""
        return " and ".join(filter(None, (self.by, self.second)))

    @property
    def coordinator_fingerprint(self) -> str | None:
        """The fingerprint of the key that signs requests; None if they need no signature."""
        return fingerprint(public_key_of(self.coordinator)) if self.coordinator else None

    def void(self, config: SiteConfig) -> list[Finding]:
        """Return why this approval does not hold, or not any more; nothing if it does."""
        found = self.stale(config)
        if config.policy.approvals_needed > 1 and self.second in ("", self.by):
            found.append(
                Finding(
                    "approval-by-one",
                    f"study {self.study.name}, hash {self.study_hash[:12]}",
                    f"expected the approval of two persons, found that of {self.by}",
                    "Another person approves it too, with name and passphrase",
                )
            )
        return found

    def stale(self, config: SiteConfig) -> list[Finding]:
        """Return what changed at the site or in the software since."""
        pairs = (
            ("the site's policy", self.policy_hash, config.policy.hash()),
            ("the site's name", self.site, config.name),
            ("the site's role", self.role, config.role),
            ("the software's version", approved_line(self.software), approved_line(software_version())),
        )
        return [
            Finding(
                "approval-void",
                f"study {self.study.name}, hash {self.study_hash[:12]}",
                f"approved for {what} {was}, found {now}",
                "Approve it again with `crossprobe site approve`, or withdraw it",
            )
            for what, was, now in pairs
            if was != now
        ]


def approve(
    state: State,
    site: Site,
    study: Study,
    *,
    by: str,
    second: str = "",
    coordinator: str = "",
    sites: Mapping[str, str] | None = None,
) -> Approval:
    """Record an approval and return it, see `Approval`; with two names see `clients.governance.persons`.

    Raises:
        SiteStateError: if it cannot be written; if the record of answered rounds is damaged; or if the study sums this
            site's updates under masks and too few keys of other sites are given: the coordinator could invent them, and
            see every update by itself.
    """
    config = site.config
    if config.role in study.secure_aggregation and len({*(sites or {}), config.name}) < LEAST_SITES:
        raise SiteStateError(
            f"study {study.name} sums your updates under masks with those of other hospitals, at least {LEAST_SITES} "
            f"in all, but {len(sites or {})} of their keys are given. Ask the coordinator for the folder of all sites' "
            "signing keys, compare their fingerprints with these hospitals, and give it with --site-keys."
        )
    answered = state.answered(study.hash())
    patients = answered.declared or site.declared_in(study)
    approval = Approval(
        by=by,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        study=study,
        study_hash=study.hash(),
        policy_hash=config.policy.hash(),
        site=config.name,
        role=config.role,
        software=software_version(),
        patients=patients,
        coordinator=coordinator,
        second=second,
        sites=sites or {},
    )
    if patients != answered.declared and answered.round < 0:  # later the worker writes there
        state.keep_answer(approval.study_hash, replace(answered, declared=patients))
    # before it holds: better one on record that could not be given than one given that is on no record
    record(
        state.decisions,
        Decision(
            "approved", second or by, study.name, approval.study_hash, approval.policy_hash, software=approval.software
        ),
    )
    content = {"version": VERSION, **asdict(approval), "study": study.model_dump(mode="json")}
    write(state.approval(approval.study_hash), json.dumps(content, indent=1).encode())
    return approval


def withdraw(state: State, study_hash: str, *, by: str) -> bool:
    """Take an approval back; return whether there was one. Ledger and answered rounds stay as they are.

    Args:
        by: who takes it back, by name.

    Raises:
        SiteStateError: if it cannot be removed; or, once it is, if that cannot be written down.
    """
    path = state.approval(study_hash)
    try:
        approval = approval_of(state, study_hash)
    except SiteStateError:  # a damaged one is taken back too
        approval = None
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise SiteStateError(f"cannot remove {path}: {error.strerror}. The study is still approved.") from None
    try:
        record(state.decisions, Decision("withdrew", by, approval.study.name if approval else "", study_hash))
    except SiteStateError as error:
        raise SiteStateError(f"the study is withdrawn, but that is on no record: {error}") from None
    return True


def approval_of(state: State, study_hash: str) -> Approval | None:
    """Return the approval of a study as it is on disk now, valid or void, or None.

    Raises:
        SiteStateError: if its file is damaged or is not of this study.
    """
    path = state.approval(study_hash)
    try:
        content: dict[str, Any] = parse_json(path.read_bytes(), origin=path.name)
        version = content.pop("version")
        approval = Approval(**{**content, "study": parse_study(content["study"], origin=path.name)})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StudyError):
        raise _damaged(state, study_hash) from None
    if version != VERSION or approval.study.hash() != study_hash or approval.study_hash != study_hash:
        raise _damaged(state, study_hash)
    return approval


def valid_approvals(state: State, config: SiteConfig) -> Mapping[str, Approval]:
    """Return the approvals that hold, by study hash. A damaged file counts as none."""
    found = {}
    for path in state.approvals():
        try:
            approval = approval_of(state, path.stem)
        except SiteStateError:
            continue
        if approval is not None and not approval.void(config):
            found[path.stem] = approval
    return found


def _damaged(state: State, study_hash: str) -> SiteStateError:
    return SiteStateError(f"{state.approval(study_hash)} is damaged. Withdraw the study, then approve it again.")
