"""A site's state folder: what a hospital's worker must not lose, and what nobody else may read.

    secret              32 random bytes, mode 0600, made once, never sent
    signing.pub         the public key by which the coordinator knows this site's replies, made of the secret
    approvals/HASH.json one file a study, see `clients.governance.approval`
    decisions.jsonl     who approved and withdrew what, see `clients.governance.decisions`
    ledger.jsonl        see `clients.governance.ledger`
    answered/HASH       one file a study: the highest round answered, and that very reply
    answered/HASH.received  the weights that its requests brought last, see `clients.governance.received`
    accountant.json     what was spent of the privacy budget, see `clients.governance.accountant`
    streams/NAME        which study was the first of its name and seed here, see `State.study_secret`
    cohorts             who counts together in numbers over many patients, see `clients.governance.cohorts`
    persons.json        who may approve, where the policy asks for two, see `clients.governance.persons`
    lock                held by the process that answers

It is apart from the folder with the images, which the worker needs only to read.
"""

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import RunError, SiteStateError
from common.files import PRIVATE, exclusive, private_folder, write_atomically
from common.messages import digest
from common.seeds import derive
from common.signing import site_key, text_of
from common.strict_text import parse_json
from common.study import Study

SECRET_BYTES = 32
VERSION = 1
T = TypeVar("T")
#: What to do once a write failed, for the person who reads the error.
_THEN = "start the worker or the command again"


@dataclass(frozen=True)
class Answered:
    """How far a study has come at this site.

    Attributes:
        start: how often the study was started over here; each start has randomness of its own.
        round: highest round that was answered, or -1.
        request: SHA-256 of the request that it answered, or empty.
        reply: the bytes that answered it; empty while a private round is under way, which only the very same request
            can go on with.
        frozen: numbers of this study that were sent and must not change, see `common.metric.Metric`.
        runs: of the coordinator, in hex, that were answered since this start.
        superseded: those from before it, of which nothing is answered any more.
        masking: SHA-256 of the list of sites among whom the update of that round is summed; empty: it is not.
        survivors: sites whose sum with this one was laid bare in that round; with other ones it never is.
        declared: training patients as the study's first approval declared them, or 0 before that.
    """

    start: int = 0
    round: int = -1
    request: str = ""
    reply: bytes = b""
    frozen: Mapping[str, float] = field(default_factory=dict)
    masking: str = ""
    survivors: Sequence[str] = ()
    runs: Sequence[str] = ()
    superseded: Sequence[str] = ()
    declared: int = 0


class State:
    """The state folder of one site.

    Raises:
        SiteStateError: if the folder was not made by `crossprobe site init`, or its secret is damaged or
            readable by others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._secret = folder / "secret"
        try:
            mode = self._secret.stat().st_mode
            secret = self._secret.read_bytes()
        except FileNotFoundError:
            raise SiteStateError(
                f"{folder} is not a site's state folder: it holds no secret. Make it with: "
                f"crossprobe site init --state {folder}"
            ) from None
        except OSError as error:
            raise SiteStateError(f"cannot read {self._secret}: {error.strerror}. Run as the worker's user.") from None
        if mode & 0o077:
            raise SiteStateError(f"others can read {self._secret}. Close it with: chmod 600 {self._secret}")
        if len(secret) != SECRET_BYTES:
            raise SiteStateError(
                f"{self._secret} is damaged: expected {SECRET_BYTES} bytes, found {len(secret)}. Restore it from "
                "your backup. A new state folder would have a new secret, but forget the ledger, the answered rounds "
                "and the epsilon that was spent: that is for your privacy officer to decide."
            )
        self._secret_bytes = secret

    @classmethod
    def create(cls, folder: Path, secret: bytes | None = None) -> "State":
        """Make a state folder with a new secret.

        Args:
            secret: 32 bytes instead of random ones, for stand-ins that must be repeatable.

        Raises:
            SiteStateError: if the folder has a secret already or cannot be written.
        """
        path = folder / "secret"
        try:
            private_folder(folder)
            if path.exists():
                raise SiteStateError(f"{folder} already has its secret, which is made once. Nothing was changed.")
            refuse_another_use(folder)
            for name in ("approvals", "answered"):
                private_folder(folder / name)
            content = secrets.token_bytes(SECRET_BYTES) if secret is None else secret
            write_atomically(path, content, then="run it again", new=True)
        except RunError as error:
            raise SiteStateError(str(error)) from None
        except OSError as error:
            raise SiteStateError(f"cannot make the state folder {folder}: {error.strerror}.") from None
        state = cls(folder)
        write(state.public_key, f"{text_of(state.signing_key().public_key())}\n".encode())
        return state

    @property
    def public_key(self) -> Path:
        """The file that the coordinator gets; of an older folder it is missing."""
        return self.folder / "signing.pub"

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.folder / "ledger.jsonl"

    @property
    def decisions(self) -> Path:
        """The file of who approved and withdrew what, see `clients.governance.decisions`."""
        return self.folder / "decisions.jsonl"

    @property
    def accountant(self) -> Path:
        """The accountant's file."""
        return self.folder / "accountant.json"

    @property
    def cohorts(self) -> Path:
        """The file of who counts together, see `clients.governance.cohorts`."""
        return self.folder / "cohorts"

    @property
    def persons(self) -> Path:
        """The file of those who may approve, see `clients.governance.persons`."""
        return self.folder / "persons.json"

    def approval(self, study_hash: str) -> Path:
        """Return the file of a study's approval, which need not exist."""
        return self.folder / "approvals" / f"{study_hash}.json"

    def approvals(self) -> list[Path]:
        """Return the files of all approvals."""
        return sorted((self.folder / "approvals").glob("*.json"))

    def secret(self, start: int) -> bytes:
        """Return the 32 bytes from which a study's randomness is derived at its `start`-th start here.

        A round that is asked again with other tensors must not meet the same noise: the difference of
        the two replies would be free of it.
        """
        return self._secret_bytes if start == 0 else derive(self._secret_bytes, "start", start)

    def study_secret(self, study: Study, start: int) -> bytes:
        """Return `secret(start)` for the first study of its name and seed here, and another one for each later.

        Which patients are drawn, and how they are augmented, follows a study's name and seed, not its settings. Two
        studies that differ in one setting would train on the very same draws, and the difference of two updates, or of
        two sums under masks, be a single site's or a single image's.

        Raises:
            SiteStateError: if the record of the first cannot be read or written.
        """
        first = self.folder / "streams" / digest(f"{study.name} {study.seed}".encode())
        try:
            if not first.exists():
                private_folder(first.parent)
                write(first, study.hash().encode())
            owner = first.read_text()
        except OSError as error:
            raise SiteStateError(f"cannot read or write {first}: {error.strerror}. Run as the worker's user.") from None
        own = self.secret(start)
        return own if owner == study.hash() else derive(own, "another study of this name", study.hash())

    def signing_key(self) -> Ed25519PrivateKey:
        """Return the key by which the coordinator knows this site's replies; the same for all studies."""
        return site_key(self._secret_bytes)

    def answered(self, study_hash: str) -> Answered:
        """Return how far a study has come here.

        Raises:
            SiteStateError: if the record is damaged; without it an old round could be answered twice.
        """
        known = read_record(
            self._answered(study_hash),
            lambda content, reply: Answered(**content, reply=reply),
            "Restore it from your latest backup; if there is none, remove it, and approve the study again with "
            "--restart if the coordinator starts it over.",
        )
        return known or Answered()

    def keep_answer(self, study_hash: str, answered: Answered) -> None:
        """Bring a round and its reply to the disk in one step, before the reply leaves.

        Raises:
            SiteStateError: if that fails; the record before it is intact.
        """
        content = asdict(answered)
        write_record(self._answered(study_hash), content, content.pop("reply"))

    def received(self, study_hash: str) -> Path:
        """Return the file of what a study's requests brought last, see `clients.governance.received`."""
        return self.folder / "answered" / f"{study_hash}.received"

    def start_over(self, study_hash: str) -> None:
        """Let a study begin again at its first round, with randomness of its own."""
        before = self.answered(study_hash)
        superseded = [*before.superseded, *before.runs]
        begun = Answered(before.start + 1, frozen=before.frozen, superseded=superseded, declared=before.declared)
        self.keep_answer(study_hash, begun)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for as long as the block runs.

        Raises:
            SiteStateError: if another process holds it.
        """
        taken = f"another worker already uses the state folder {self.folder}. Stop it first; two would answer the same "
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(exclusive(self.folder / "lock", f"{taken}messages."))
            except RunError as error:
                raise SiteStateError(str(error)) from None
            yield

    def _answered(self, study_hash: str) -> Path:
        return self.folder / "answered" / study_hash


def write(path: Path, content: bytes, *, mode: int = PRIVATE) -> None:
    """Write a file of a site's own, whole or not at all, by default for its user only. Raises SiteStateError."""
    try:
        write_atomically(path, content, then=_THEN, mode=mode)
    except RunError as error:
        raise SiteStateError(str(error)) from None


def write_record(path: Path, content: Mapping[str, Any], blob: bytes) -> None:
    """Write a line of JSON and bytes whose hash it holds, in one step, see `write`."""
    head = {"version": VERSION, "sha256": digest(blob), **content}
    write(path, json.dumps(head).encode() + b"\n" + blob)


def read_record(path: Path, made: Callable[[dict[str, Any], bytes], T], remedy: str) -> T | None:
    """Return what `made` makes of a record's JSON and bytes, as `write_record` was given them; None without a file.

    Raises:
        SiteStateError: if it cannot be read, or is damaged: with what to do then.
    """
    try:
        head, _, blob = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SiteStateError(f"cannot read {path}: {error.strerror}. Check the folder's permissions.") from None
    try:
        content = parse_json(head, origin=path.name)
        if content.pop("version") != VERSION or content.pop("sha256") != digest(blob):
            raise ValueError
        return made(content, blob)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SiteStateError(f"{path} is damaged. {remedy}") from None


def refuse_another_use(folder: Path) -> None:
    """See to it that a folder to make keys or a secret in is not in use for something else.

    The node has a network and must not see the secret; the worker must not see the node's key; images lie apart.

    Raises:
        SiteStateError: saying what the folder is.
    """
    uses = {"site.yaml": "a site's images", "secret": "a worker's state", "superexec.secret": "a node's keys"}
    for name, what in uses.items():
        if (folder / name).exists():
            raise SiteStateError(
                f"{folder} holds {name}, it is the folder of {what}. Give one of its own. Nothing was changed."
            )
