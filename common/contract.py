"""What may travel between server and site, and nothing else: messages, components, tensors, metrics.

Torch-free, because the network-facing processes import it. A message is `MAGIC`, the length of a
JSON header, the header (a pydantic model that forbids unknown keys) and a safetensors blob. Exactly
these bytes go over Flower, over gRPC and into the hash of a site's ledger.
"""

import hashlib
import itertools
import math
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.errors import ContractError

MAGIC = b"XPRB"
MAX_HEADER_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 1 << 30

Role = Literal["source", "target"]
ROLES: tuple[Role, ...] = ("source", "target")
TaskName = Literal["supervise", "self_supervise", "self_train", "infuse", "score", "evaluate"]
Tensors = dict[str, np.ndarray]

BRANCHES = ("source_branch", "target_branch")
#: Every component that a site may train and send back.
COMPONENTS = (
    "source_branch.encoder",
    "source_branch.decoder",
    "target_branch.encoder",
    "target_branch.decoder",
    "mim_decoder",
    "projector",
    "infusion_head",
)
#: The fused model: both branches and the head. What the score judges and what is released.
FUSED = (*COMPONENTS[:4], "infusion_head")
#: Read-only at a site: the model that `evaluate` compares with.
BASELINE = ("baseline.encoder", "baseline.decoder")
PREDICTORS = ("baseline", "source_branch", "target_branch", "average", "infusion")
MEASURES = ("dice", "iou", "hd95", "calibration_error")
STATISTICS = ("mean", "low", "high", "difference", "difference_low", "difference_high", "patients")
#: Of test frames. No count: the policy rounds counts of patients only.
EMPTY_SHARES = ("empty_truth_share", "empty_prediction_share")

#: The only numbers that each task may send. The privacy officer's table is made from this.
METRICS: dict[str, tuple[str, ...]] = {
    "supervise": ("loss", "foreground_fraction", "val_dice"),
    "self_supervise": ("loss", "reconstruction_loss", "contrast_loss"),
    "self_train": ("loss", "confidence", "pseudo_foreground_fraction", "score"),
    "infuse": ("loss", "mean_weight", "val_dice"),
    "score": ("score", "val_dice"),
    "evaluate": (
        *("/".join(name) for name in itertools.product(PREDICTORS, MEASURES, STATISTICS)),
        *("/".join(name) for name in itertools.product(PREDICTORS, EMPTY_SHARES)),
    ),
}
#: Beyond the ends of a metric's range: float32 sums of a share of 1 may be 1.0000001, of a loss of 0 be -1e-8.
ROUNDING = 1e-6

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SITE_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"


class Message(BaseModel):
    """Base of every header. Unknown keys are refused; values are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    protocol: Literal[1] = 1


class EnrolRequest(Message):
    """Who are you in this study? Sent as a query before the first round."""

    kind: Literal["enrol"] = "enrol"
    study: Sha256


class EnrolReply(Message):
    """A site's answer, declared once and fixed for the study.

    Attributes:
        patients: training patients as the site's policy lets them be known (rounded, capped).
        labelled_test: whether `evaluate` can be asked of this site.
    """

    kind: Literal["enrolled"] = "enrolled"
    study: Sha256
    site: str = Field(pattern=SITE_NAME)
    role: Role
    patients: int = Field(ge=0, le=1_000_000)
    labelled_test: bool
    software: str = Field(max_length=40)


class TaskRequest(Message):
    """One task of one round. All settings come from the site's own copy of the study.

    Attributes:
        round: 0-based over the whole study.
        foreground_prior: the sources' mean foreground fraction in [0, 1]; None before it is known.
    """

    kind: Literal["task"] = "task"
    study: Sha256
    round: int = Field(ge=0)
    stage: str = Field(pattern=r"^[a-z0-9_-]{1,40}$")
    task: TaskName
    foreground_prior: float | None = Field(default=None, ge=0.0, le=1.0)


class TaskReply(Message):
    """The updates (new minus received) of the components that the task trains, and its metrics.

    Attributes:
        ledger_head: SHA-256 of the last line of the site's ledger when the reply was made: of the line
            that records the request. The reply's own line follows it and holds the SHA-256 of these
            bytes, so it cannot be in them. None where no ledger is kept (simulations).
    """

    kind: Literal["done"] = "done"
    study: Sha256
    round: int = Field(ge=0)
    stage: str
    task: TaskName
    request: Sha256
    metrics: dict[str, float]
    ledger_head: Sha256 | None = None


class Refusal(Message):
    """A site's no: a code from a fixed list and a fixed sentence, never an exception's text.

    `ledger_head` is as in `TaskReply`; None also from a site that did not approve the study.
    """

    kind: Literal["refused"] = "refused"
    code: str = Field(pattern=r"^[a-z-]{3,40}$")
    message: str = Field(max_length=300)
    ledger_head: Sha256 | None = None


AnyHeader = Annotated[EnrolRequest | EnrolReply | TaskRequest | TaskReply | Refusal, Field(discriminator="kind")]


_HEADER: TypeAdapter[AnyHeader] = TypeAdapter(AnyHeader)


def pack(header: Message, tensors: Mapping[str, np.ndarray] | None = None) -> bytes:
    """Return the bytes of a message. The same header and tensors give the same bytes."""
    head = header.model_dump_json().encode()
    blob = save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}) if tensors else b""
    return MAGIC + struct.pack("<I", len(head)) + head + blob


def unpack(payload: bytes) -> tuple[Message, Tensors]:
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
        fields = ", ".join(".".join(map(str, item["loc"][1:])) for item in error.errors())
        raise ContractError("not-a-message", f"the header breaks its model at: {fields}") from None
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


def digest(payload: bytes) -> str:
    """Return the SHA-256 of a message's bytes, in hex."""
    return hashlib.sha256(payload).hexdigest()


def component_of(tensor: str) -> str:
    """Return the component a tensor's key belongs to: `target_branch.encoder/conv_0.w` -> before the slash."""
    return tensor.partition("/")[0]


def select(tensors: Mapping[str, np.ndarray], components: Iterable[str]) -> Tensors:
    """Return the tensors that belong to `components`, in sorted order."""
    wanted = set(components)
    return {name: tensors[name] for name in sorted(tensors) if component_of(name) in wanted}


Shapes = Mapping[str, tuple[int, ...]]


def check_tensors(tensors: Mapping[str, np.ndarray], shapes: Shapes, *, max_norm: float) -> None:
    """Check tensors against what the contract expects: exactly these names, shapes, float32, finite.

    Args:
        tensors: as received.
        shapes: expected shape by name.
        max_norm: largest L2 norm over all tensors together. It also bounds every value, which the
            exact integer aggregation needs.

    Raises:
        ContractError: `unknown-tensor`, `missing-tensor`, `wrong-dtype`, `wrong-shape`, `not-finite`
            or `absurd-norm`, naming the first tensor and how many more there are.
    """

    def refuse(code: str, names: list[str], text: str) -> None:
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            # A received name could carry anything: only a plain one is repeated.
            shown = names[0] if re.fullmatch(r"[\w./]{1,120}", names[0]) else "a tensor"
            raise ContractError(code, f"{shown}{more}: {text}")

    refuse("unknown-tensor", sorted(tensors.keys() - shapes.keys()), "not part of this task")
    refuse("missing-tensor", sorted(shapes.keys() - tensors.keys()), "expected, not found")
    refuse("wrong-dtype", [n for n, x in tensors.items() if x.dtype != np.float32], "expected float32")
    refuse(
        "wrong-shape",
        [n for n, x in tensors.items() if x.shape != tuple(shapes[n])],
        "its shape is not the study's",
    )
    refuse(
        "not-finite",
        [n for n, x in tensors.items() if not np.isfinite(x).all()],
        "holds NaN or infinity",
    )
    norm = float(np.sqrt(sum(float(np.square(x, dtype=np.float64).sum()) for x in tensors.values())))
    if norm > max_norm:
        raise ContractError("absurd-norm", f"L2 norm {norm:.3g} is over the study's bound {max_norm:.3g}")


def metric_range(name: str) -> tuple[float, float]:
    """Return the least and the largest value that a metric of the contract can have."""
    *_, measure, last = ("", *name.split("/"))
    if last.startswith("difference"):
        return (-math.inf, math.inf) if measure == "hd95" else (-1.0, 1.0)
    # Losses are sums of cross-entropies, squared errors and 1 - Dice: none is below 0.
    unlimited = measure == "hd95" or last == "patients" or last.endswith("loss")
    return (0.0, math.inf if unlimited else 1.0)


def check_metrics(task: str, metrics: Mapping[str, float]) -> None:
    """Check that a task sends only finite numbers that the contract names, each within its range.

    Raises:
        ContractError: `unknown-metric`, `not-finite` or `out-of-range`.
    """
    unknown = sorted(metrics.keys() - set(METRICS[task]))
    if unknown:
        raise ContractError("unknown-metric", f"{len(unknown)} metric(s) that `{task}` may not send")
    if not all(math.isfinite(value) for value in metrics.values()):
        raise ContractError("not-finite", "a metric is NaN or infinite")
    for name, value in sorted(metrics.items()):
        low, high = metric_range(name)
        if not low - ROUNDING <= value <= high + ROUNDING:
            raise ContractError("out-of-range", f"{name}: expected {low:g} to {high:g}, found {value:.6g}")
