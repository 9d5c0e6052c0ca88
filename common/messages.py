"""The messages between server and site: their headers, and the bytes that they are. Torch-free.

The network-facing processes import this. A message is `MAGIC`, the length of a JSON header, the header (a
pydantic model that forbids unknown keys) and a safetensors blob. Exactly these bytes go over Flower, over gRPC
and into the hash of a site's ledger.
"""

import hashlib
import json
import re
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.components import Role, Tensors
from common.errors import ContractError
from common.names import NAME, STAGE_NAME, Sha256
from common.tasks import TASK_NAME

MAGIC = b"XPRB"
MAX_HEADER_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 1 << 30
#: Patients that a site's enrolment may declare.
MAX_PATIENTS = 1_000_000

Hex = r"^([0-9a-f]{2})*$"
SiteName = Annotated[str, Field(pattern=NAME)]
#: Shares and seeds of masks, see `common.masking`: site -> hex.
Shares = dict[SiteName, Annotated[str, Field(pattern=Hex, max_length=200)]]
Seeds = dict[SiteName, Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]]
#: Texts are shown on terminals, where other characters could move the cursor or change what stands there.
PRINTABLE = r"^[ -~]*$"


def _absent(value: object) -> bool:
    """Whether an optional field is no part of a message: without it the bytes are those of studies without it."""
    return not value


class MaskKey(BaseModel):
    """A site's public key for the masks of one study, and who says so.

    Attributes:
        key: X25519, hex.
        signature: Ed25519, hex, by the site's signing key; see `common.signing.certify`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


class Masking(BaseModel):
    """Among whom an update is summed under masks, see `common.masking`.

    Attributes:
        keys: of every site that is asked, the receiver's own included.
        patients: of all sites of the role, so that each can tell whether its part could overflow the sum.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    keys: dict[SiteName, MaskKey]
    patients: int = Field(ge=1)

    @property
    def sha256(self) -> str:
        """The SHA-256 of all of it, in hex, in whatever order the sites are named."""
        return digest(json.dumps(self.model_dump(), sort_keys=True).encode())


class Header(BaseModel):
    """Base of every header. Unknown keys are refused; values are not coerced.

    A field's description is what the privacy officer reads of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    protocol: Literal[1] = Field(default=1, description="version of the messages' format")


class EnrolRequest(Header):
    """Who are you in this study? Sent as a query before the first round.

    Attributes:
        nonce: makes each request another, so that no reply to an older one is one to it.
    """

    kind: Literal["enrol"] = "enrol"
    study: Sha256
    nonce: str = Field(default_factory=lambda: secrets.token_hex(16), pattern=r"^[0-9a-f]{32}$")


class EnrolReply(Header):
    """A site's answer, declared once and fixed for the study."""

    when: ClassVar[str] = "when a run starts or goes on"
    kind: Literal["enrolled"] = Field(default="enrolled", description="which of these messages it is")
    study: Sha256 = Field(description="hash of the study")
    request: Sha256 = Field(description="hash of the request that is answered")
    site: str = Field(pattern=NAME, description="your site's name")
    role: Role = Field(description="source or target")
    patients: int = Field(
        ge=0,
        le=MAX_PATIENTS,
        description="number of your training patients, rounded and capped by your policy, or the study's public number",
    )
    labelled_test: bool = Field(description="whether you have enough labelled test patients for the evaluation")
    software: str = Field(max_length=40, pattern=PRINTABLE, description="version of CrossProbe")
    mask_key: MaskKey | None = Field(
        default=None,
        exclude_if=_absent,
        description="where updates are summed under masks: your public key for them, signed by you",
    )


class TaskRequest(Header):
    """One task of one round. All settings come from the site's own copy of the study.

    Attributes:
        round: 0-based over the whole study.
        foreground_prior: the sources' mean foreground fraction in [0, 1]; None before it is known.
        masking: where updates are summed under masks, else None.
    """

    kind: Literal["task"] = "task"
    study: Sha256
    round: int = Field(ge=0)
    stage: str = Field(pattern=STAGE_NAME)
    task: str = Field(pattern=TASK_NAME)
    foreground_prior: float | None = Field(default=None, ge=0.0, le=1.0)
    masking: Masking | None = Field(default=None, exclude_if=_absent)


class UnmaskRequest(Header):
    """The second half of a round whose updates are summed under masks: whose of them arrived.

    Attributes:
        request: SHA-256 of the task's request.
        shares: each site whose update arrived -> the share that it sealed for the receiver.
    """

    kind: Literal["unmask"] = "unmask"
    study: Sha256
    round: int = Field(ge=0)
    task: str = Field(pattern=TASK_NAME)
    request: Sha256
    masking: Masking
    shares: Shares


class TaskReply(Header):
    """The metrics of a task; its tensors are the updates, new minus received, of what the task trains.

    Attributes:
        ledger_head: of the line that records the request. The reply's own line follows it and holds the SHA-256
            of these bytes, so it cannot be in them. None where no ledger is kept (simulations).
    """

    when: ClassVar[str] = "once for each task of a round"
    kind: Literal["done"] = Field(default="done", description="which of these messages it is")
    study: Sha256 = Field(description="hash of the study")
    round: int = Field(ge=0, description="number of the round")
    stage: str = Field(description="name of the stage")
    task: str = Field(pattern=TASK_NAME, description="name of the task")
    request: Sha256 = Field(description="hash of the request that is answered")
    metrics: dict[str, float] = Field(description="the numbers below")
    ledger_head: Sha256 | None = Field(default=None, description="hash of your ledger's last line")
    shares: Shares = Field(
        default={},
        exclude_if=_absent,
        description="where updates are summed under masks: for each site of your role its share of the key to one of "
        "your masks, which only that site can read",
    )


class UnmaskReply(Header):
    """A site's part in laying bare the sum of a round, and only the sum, see `common.masking`.

    Attributes:
        request: SHA-256 of the request to unmask.
    """

    when: ClassVar[str] = "once for each round whose updates are summed under masks"
    kind: Literal["unmasked"] = Field(default="unmasked", description="which of these messages it is")
    study: Sha256 = Field(description="hash of the study")
    round: int = Field(ge=0, description="number of the round")
    task: str = Field(pattern=TASK_NAME, description="name of the task")
    request: Sha256 = Field(description="hash of the request that is answered")
    shares: Shares = Field(description="your share of a mask's key of each site whose update arrived")
    seeds: Seeds = Field(description="the key to your common mask with each site whose update did not arrive")
    ledger_head: Sha256 | None = Field(default=None, description="hash of your ledger's last line")


class Refusal(Header):
    """A site's no: a code from a fixed list and a fixed sentence, never an exception's text.

    `ledger_head` is as in `TaskReply`; None also from a site that did not approve the study.
    """

    when: ClassVar[str] = "instead of either"
    kind: Literal["refused"] = Field(default="refused", description="which of these messages it is")
    code: str = Field(pattern=r"^[a-z-]{3,40}$", description="a fixed word for the reason")
    message: str = Field(max_length=300, pattern=PRINTABLE, description="the fixed sentence of that word")
    ledger_head: Sha256 | None = Field(default=None, description="hash of your ledger's last line")


#: Every message that a site can be sent.
Request = EnrolRequest | TaskRequest | UnmaskRequest

#: Every message that a site can send, and when.
REPLIES: tuple[type[EnrolReply] | type[TaskReply] | type[UnmaskReply] | type[Refusal], ...] = (
    EnrolReply,
    TaskReply,
    UnmaskReply,
    Refusal,
)

AnyHeader = Annotated[
    EnrolRequest | EnrolReply | TaskRequest | TaskReply | UnmaskRequest | UnmaskReply | Refusal,
    Field(discriminator="kind"),
]
_HEADER: TypeAdapter[AnyHeader] = TypeAdapter(AnyHeader)


@dataclass(frozen=True)
class Message:
    """A message that was parsed, or built, once and is carried along: header, tensors and the very bytes."""

    header: Header
    tensors: Tensors = field(repr=False)
    payload: bytes = field(repr=False)

    @classmethod
    def of(cls, header: Header, tensors: Mapping[str, np.ndarray] | None = None) -> "Message":
        """Return the message of a header and tensors."""
        return cls(header, dict(tensors or {}), pack(header, tensors))

    @classmethod
    def parse(cls, payload: bytes) -> "Message":
        """Return the message that bytes are. Raises ContractError as `unpack` does."""
        return cls(*unpack(payload), payload)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the bytes, in hex."""
        return digest(self.payload)


def pack(header: Header, tensors: Mapping[str, np.ndarray] | None = None) -> bytes:
    """Return the bytes of a message. The same header and tensors give the same bytes."""
    head = header.model_dump_json().encode()
    blob = save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}) if tensors else b""
    return MAGIC + struct.pack("<I", len(head)) + head + blob


def unpack(payload: bytes) -> tuple[Header, Tensors]:
    """Return header and tensors of `payload`.

    Raises:
        ContractError: `too-large`, `not-a-message` (not ours, cut short, or a header that breaks its
            model), `bad-tensors` (the safetensors part does not decode) or `not-canonical` (bytes that
            packing the same content would not give).
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise ContractError("too-large", f"a message may hold {MAX_MESSAGE_BYTES} bytes, found {len(payload)}")
    if len(payload) < 8 or payload[:4] != MAGIC:
        raise ContractError("not-a-message", "expected a CrossProbe message, found other bytes")
    (size,) = struct.unpack("<I", payload[4:8])
    if size > MAX_HEADER_BYTES or 8 + size > len(payload):
        raise ContractError("not-a-message", "the header is cut short or too long")
    try:
        header = _HEADER.validate_json(payload[8 : 8 + size])
    except ValidationError as error:
        raise ContractError("not-a-message", f"the header breaks its model at: {_places(error)}") from None
    blob = payload[8 + size :]
    try:
        tensors = load(blob) if blob else {}
        whole = pack(header, tensors) == payload
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ContractError("bad-tensors", f"the tensors do not decode ({type(error).__name__})") from None
    if not whole:
        # Doubled keys, spaces, safetensors' own metadata: room for what the contract does not name.
        raise ContractError("not-canonical", "the message holds more than its header and tensors")
    return header, tensors


def _places(error: ValidationError) -> str:
    """Return where a header is wrong: a few places, and only plain words, for a key could hold anything."""
    places = [".".join(map(str, item["loc"][1:])) for item in error.errors(include_url=False, include_input=False)]
    plain = [place if re.fullmatch(r"[A-Za-z0-9_.]{1,60}", place) else "a key" for place in places[:3]]
    return ", ".join(plain) + (f" and {len(places) - 3} more" if len(places) > 3 else "")


def digest(payload: bytes) -> str:
    """Return the SHA-256 of a message's bytes, in hex."""
    return hashlib.sha256(payload).hexdigest()
