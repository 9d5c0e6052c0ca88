"""How the bytes of a message lie in a Flower array: as they are. Torch-free, Flower-free.

Flower's own way, `Array(ndarray)` and `Array.numpy()`, reads them as a NumPy file: whoever sent them then chooses
what NumPy does with them, e.g. set 64 GiB aside, or raise one of a dozen errors.
"""

from typing import Protocol, TypedDict

from common.errors import ContractError
from common.messages import MAX_MESSAGE_BYTES

#: Kind and type of our arrays; the kind is a name of our own, so that nothing takes them for a NumPy file.
STYPE, DTYPE = "crossprobe.message", "uint8"


class Carrier(Protocol):
    """What is read of a `flwr.app.Array`."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


class Fields(TypedDict):
    """The arguments of a `flwr.app.Array`."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


def fields_of(payload: bytes) -> Fields:
    """Return the arguments of the array that carries a message."""
    return Fields(dtype=DTYPE, shape=(len(payload),), stype=STYPE, data=payload)


def payload_of(carrier: Carrier) -> bytes:
    """Return the bytes that an array carries, without a copy.

    Raises:
        ContractError: `not-a-message` if it is not an array as `fields_of` makes them, `too-large`.
    """
    data = carrier.data
    if not isinstance(data, bytes) or (carrier.stype, carrier.dtype) != (STYPE, DTYPE) or carrier.shape != (len(data),):
        raise ContractError("not-a-message", "expected an array that carries a CrossProbe message, found another")
    if len(data) > MAX_MESSAGE_BYTES:
        raise ContractError("too-large", f"a message may hold {MAX_MESSAGE_BYTES} bytes, found {len(data)}")
    return data
