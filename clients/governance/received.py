"""What a site was sent last: by it the worker judges how far weights can have come since (`clients.learning.travel`).

A file a study in the state folder, written after each training task that was answered. Without it, as after an
update from a version that kept none, only the study's first weights are known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load, save

from clients.governance.state import State, read_record, write_record
from common.components import Tensors, component_of


@dataclass(frozen=True)
class Received:
    """What a site was sent last of each component, in a request that it answered.

    Attributes:
        rounds: component -> the round in which it came.
        tensors: of these components.
    """

    rounds: Mapping[str, int] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict, repr=False)

    def after(self, tensors: Tensors, round_: int) -> "Received":
        """Return it after another request, of that round."""
        rounds = {component_of(name): round_ for name in tensors}
        return Received({**self.rounds, **rounds}, {**self.tensors, **tensors})


def read_received(state: State, study_hash: str, start: int) -> Received:
    """Return what a study's requests brought since its `start`-th start here; nothing where there was none.

    Raises:
        SiteStateError: if the record is damaged.
    """

    def made(content: dict[str, Any], blob: bytes) -> Received:
        try:
            return Received(content["rounds"], load(blob)) if content["start"] == start else Received()
        except SafetensorError as error:
            raise ValueError(str(error)) from None

    remedy = (
        "Restore it from your latest backup, or remove it: the next request's weights are then compared with the "
        "study's first ones only."
    )
    return read_record(state.received(study_hash), made, remedy) or Received()


def keep_received(state: State, study_hash: str, start: int, received: Received) -> None:
    """Bring what a study's requests brought to the disk in one step. Raises SiteStateError."""
    content = {"start": start, "rounds": received.rounds}
    write_record(state.received(study_hash), content, save(received.tensors))
