"""What a person does at the desk: check the data, try a study out, approve it, take it back, segment own pictures.

It does what the commands do, with their functions.
"""

import json
import logging
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from clients.data.contact_sheet import contact_sheet
from clients.data.findings import Finding
from clients.data.site import Site, check_site
from clients.desk import predictions
from clients.desk.predictions import Places
from clients.desk.work import Background, DeskError, Work
from clients.governance.accountant import Accountant
from clients.governance.approval import Approval, approval_of, withdraw
from clients.governance.dry_run import Sent, dry_run
from clients.governance.persons import approve_by_policy, name_of
from clients.governance.proposal import Proposal, propose
from clients.governance.state import State
from clients.inputs import check_spacing
from clients.released import load_model
from common.errors import CrossProbeError, SiteStateError
from common.messages import digest
from common.signing import text_of
from common.spreadsheet import decimal
from common.study import Study, load_study

log = logging.getLogger("crossprobe.desk")


@dataclass(frozen=True)
class Checked:
    """What the data check found.

    Attributes:
        when: UTC.
        site: None where there are findings.
        sheet: what the contact sheet shows.
        files: SHA-256 of site.yaml and manifest.csv as they were read.
    """

    when: datetime
    site: Site | None
    findings: tuple[Finding, ...]
    sheet: Mapping[str, object]
    files: str


@dataclass(frozen=True)
class Case:
    """A study at this site: from its file, from its approval, or from both.

    Attributes:
        proposal: None until the data were checked without findings.
        approval: valid or void.
        void: why an approval does not hold any more.
    """

    study: Study
    proposal: Proposal | None
    approval: Approval | None
    void: tuple[Finding, ...]

    @property
    def hash(self) -> str:
        """Hash of the study."""
        return self.study.hash()

    @property
    def seen(self) -> str:
        """SHA-256 of all that the page shows of the proposal: what is approved has to be what was read."""
        return digest(json.dumps(asdict(self.proposal), default=str).encode()) if self.proposal else ""


@dataclass
class Desk:
    """The desk of one site.

    Attributes:
        folder: of the site's images.
        studies: a study's file, or a folder of them.
        key: the coordinator's, which alone may then sign requests and released models; None: neither needs it.
        sites: the other hospitals' signing keys, for updates that are summed under masks.
        places: of models and predictions; None: nothing is segmented here.
        checked: the last data check; None before the first has ended.
        tried: study hash -> what a dry run would have sent.
    """

    folder: Path
    state: State
    studies: Path
    key: Ed25519PublicKey | None = None
    sites: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)
    places: Places | None = None
    checked: Checked | None = None
    background: Background = field(default_factory=Background)
    tried: dict[str, list[Sent]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check_data(self) -> None:
        """Look at every image, in the background. Raises DeskError while other work goes on."""

        def run(work: Work) -> None:
            files = self._files()
            site, findings = check_site(self.folder, work.progress)
            work.what = "drawing the contact sheet"
            sheet = contact_sheet(self.folder, site, findings, work.progress)
            self.checked = Checked(datetime.now(UTC), site, tuple(findings), sheet, files)
            self.tried.clear()  # what they told was of the folder and the policy as they were

        self.background.begin("checking the data", "/data", run)

    def try_out(self, study_hash: str) -> None:
        """Run every task of a study once, in the background, and keep the table of what it would have sent.

        The messages themselves lie in a folder that is deleted at the end.

        Raises:
            DeskError: if the data are not checked, the study is not known, or other work goes on.
        """
        site, case = self._site(), self.case(study_hash)

        def run(work: Work) -> None:
            with tempfile.TemporaryDirectory(prefix="crossprobe-desk-") as out:
                self.tried[study_hash] = dry_run(
                    case.study,
                    site,
                    self.state,
                    Path(out) / "messages",
                    progress=work.progress,
                    cancelled=lambda: work.stopping,
                )

        self.background.begin(f"trying out {case.study.name}", f"/study/{study_hash}", run)

    def predict(self, model: str, images: str, spacing: str) -> None:
        """Segment own pictures with a released model, in the background, and keep what it draws.

        Args:
            model, images: keys of `predictions.releases` and `predictions.choices`.
            spacing: side of a pixel in mm, as typed, for pictures that do not tell it; may be empty.

        Raises:
            DeskError: if one of them is not there, or other work goes on.
            RunError: if the spacing makes no sense.
        """
        places = self.places
        if places is None:
            raise DeskError("This desk was started without --models. Nothing was segmented.")
        site = self._site() if images.partition("/")[0] == "site" else None
        folder, offered = predictions.releases(places.models).get(model), predictions.choices(site, places.images)
        if folder is None or images not in offered:
            raise DeskError("This model or these images are not there any more. Nothing was segmented: choose again.")
        spacing_mm = _millimetres(spacing)

        def run(work: Work) -> None:
            predictions.make(
                load_model(folder, self.key),
                predictions.inputs_of(images, site, places.images),
                places.kept,
                words=(model, offered[images]),
                spacing_mm=spacing_mm,
                progress=work.progress,
            )

        self.background.begin(f"segmenting {offered[images]} with {model}", "/predictions", run)

    def approve(self, study_hash: str, *, by: str, seen: str, passphrase: str = "", restart: bool = False) -> Approval:
        """Approve a study as the command does.

        Args:
            by: name of the person.
            passphrase: theirs, where the policy asks for two persons.
            seen: `Case.seen` of the page that the person read.
            restart: let the study begin again at its first round, with the worker stopped.

        Raises:
            DeskError: if the policy does not allow it, or anything on the page is not as it was read.
            SiteStateError: if it cannot be written, name and passphrase are not right, or, with `restart`, the
                worker runs.
        """
        by = name_of(by)
        with self._lock:
            site, case = self._site(), self.case(study_hash)
            if case.proposal is None or case.proposal.findings:
                raise DeskError("This study cannot be approved here: see what its page says. Nothing was changed.")
            if case.seen != seen:
                raise DeskError(
                    "What this study would do here changed while you read. Nothing was changed: read again."
                )
            approval = approve_by_policy(
                self.state,
                site,
                case.study,
                name=by,
                passphrase=passphrase,
                coordinator=text_of(self.key) if self.key else "",
                sites={name: text_of(own) for name, own in self.sites.items()},
                restart=restart,
            )
        again = " from its first round on" if restart else ""
        log.warning("%s approved study %s, %s%s", by, case.study.name, study_hash, again)
        return approval

    def withdraw(self, study_hash: str, *, by: str) -> None:
        """Take an approval back as the command does. Raises DeskError, SiteStateError."""
        by = name_of(by)
        with self._lock:
            if not withdraw(self.state, study_hash, by=by):
                raise DeskError("This study is not approved here, so there is nothing to take back.")
        log.warning("%s withdrew study %s", by, study_hash)

    def cases(self) -> tuple[list[Case], list[str]]:
        """Return the studies, those with a file first, and why a file or an approval cannot be read."""
        found: dict[str, Study] = {}
        problems = []
        for file in self._study_files():
            try:
                study = load_study(file)
                found[study.hash()] = study
            except CrossProbeError as error:
                problems.append(str(error))
        approvals: dict[str, Approval] = {}
        for path in self.state.approvals():
            try:
                approval = approval_of(self.state, path.stem)
            except SiteStateError as error:
                problems.append(str(error))
                continue
            if approval is not None:
                approvals[path.stem] = approval
                found.setdefault(path.stem, approval.study)
        accountant, site = Accountant(self.state.accountant), self.checked.site if self.checked else None
        cases = []
        for study_hash, study in found.items():
            approval = approvals.get(study_hash)
            proposal = self._proposal(study_hash, study, site, accountant) if site else None
            void = tuple(approval.void(site.config)) if approval and site else ()
            cases.append(Case(study, proposal, approval, void))
        return cases, problems

    def case(self, study_hash: str) -> Case:
        """Return one study. Raises DeskError if it is not known here."""
        return case_of(study_hash, self.cases()[0])

    @property
    def stale(self) -> bool:
        """Whether site.yaml or manifest.csv is not as it was when the data were checked."""
        return self.checked is not None and self.checked.files != self._files()

    def _proposal(self, study_hash: str, study: Study, site: Site, accountant: Accountant) -> Proposal:
        try:
            declared = self.state.answered(study_hash).declared
        except SiteStateError:
            declared = 0  # the study's page tells what is damaged
        return propose(study, site, today=datetime.now(UTC).date(), accountant=accountant, declared=declared)

    def _site(self) -> Site:
        if self.checked is None or self.checked.site is None:
            raise DeskError("First the data check has to end without findings. Nothing was changed.")
        if self.stale:
            raise DeskError("site.yaml or manifest.csv changed since the data check. Nothing was changed: check again.")
        return self.checked.site

    def _study_files(self) -> list[Path]:
        if not self.studies.is_dir():
            return [self.studies]
        return sorted(file for file in self.studies.iterdir() if file.suffix in (".yaml", ".yml"))

    def _files(self) -> str:
        try:
            return digest(b"".join((self.folder / name).read_bytes() for name in ("site.yaml", "manifest.csv")))
        except OSError:
            return ""  # the check itself says what is wrong


def _millimetres(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        spacing_mm = decimal(text.strip())
    except ValueError:
        raise DeskError("expected the side of a pixel as a number of millimetres. Nothing was segmented.") from None
    check_spacing(spacing_mm)
    return spacing_mm


def case_of(study_hash: str, cases: Sequence[Case]) -> Case:
    """Return one study of the cases. Raises DeskError if it is not known here."""
    for case in cases:
        if case.hash == study_hash:
            return case
    raise DeskError("This study is not known here: it has neither a file in the kit nor an approval.")


def latest_other(cases: Sequence[Case], case: Case) -> Case | None:
    """Return the case with the latest approval among the other studies, if its proposal is known."""
    others = [(other.approval.when, other) for other in cases if other.approval and other.hash != case.hash]
    latest = max(others, key=lambda pair: pair[0], default=None)
    return latest[1] if latest and latest[1].proposal else None
