"""What a run must not lose: the server's state after each round, on disk in one atomic step."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.components import FUSED, Role, Tensors, select
from common.errors import RunError
from common.files import private_folder, write_atomically
from common.messages import MAX_PATIENTS, MaskKey, digest
from common.plain_words import problems
from common.run_folder import GO_ON
from common.strict_text import parse_json

VERSION = 2


@dataclass(frozen=True)
class Participant:
    """A site as it enrolled; fixed for the study.

    Attributes:
        mask_key: where its updates are summed under masks, else None.
    """

    role: Role
    patients: Annotated[int, Field(ge=1, le=MAX_PATIENTS, strict=True)]
    labelled_test: Annotated[bool, Field(strict=True)]
    mask_key: MaskKey | None = None


_PARTICIPANTS = TypeAdapter(dict[str, Participant])


@dataclass(frozen=True)
class ServerState:
    """Everything the next round is a function of.

    Attributes:
        round: index of the next round.
        components: the current global tensors.
        released: the fused model that would be released now; empty before the first score.
        released_round: the round in which sites received that model, or None.
        best_score: the best label-free score of a model that was released so far, in [0, 1], or None.
        best_val_dice: source -> the best Dice on its validation patients of such a model, in [0, 1].
        foreground_prior: patient-weighted mean foreground at the sources, or None before the first reply.
        participants: site name -> participant.
        bytes_to_sites, bytes_from_sites: payload bytes so far.
    """

    round: int
    components: Tensors
    released: Tensors = field(default_factory=dict)
    released_round: int | None = None
    best_score: float | None = None
    best_val_dice: Mapping[str, float] = field(default_factory=dict)
    foreground_prior: float | None = None
    participants: Mapping[str, Participant] = field(default_factory=dict)
    bytes_to_sites: int = 0
    bytes_from_sites: int = 0


class _Saved(BaseModel):
    """What a state file may say of a run: who can edit it must not weigh a site negatively or count it twice."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    round: int = Field(ge=0, strict=True)
    released_round: int | None = Field(ge=0, strict=True)
    best_score: float | None = Field(ge=0, le=1)
    best_val_dice: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}  # runs from before it was kept have none
    foreground_prior: float | None = Field(ge=0, le=1)
    participants: dict[str, Participant]
    bytes_to_sites: int = Field(ge=0, strict=True)
    bytes_from_sites: int = Field(ge=0, strict=True)

    @model_validator(mode="after")
    def _released_before(self) -> Self:
        if self.released_round is not None and self.released_round >= self.round:
            raise ValueError(f"round {self.released_round} cannot be released before round {self.round}")
        return self

    def as_state(self) -> ServerState:
        return ServerState(components={}, **dict(self))


def save_state(folder: Path, state: ServerState, study_hash: str) -> None:
    """Write a checkpoint: the tensors under a new name first, then the state file that points at them.

    Raises:
        RunError: if it cannot be written; the checkpoint before it is intact.
    """
    try:
        private_folder(folder)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}. Make room, then {GO_ON}.") from None
    tensors = {f"components/{k}": v for k, v in state.components.items()}
    tensors |= {f"released/{k}": v for k, v in state.released.items()}
    blob = save(dict(sorted(tensors.items())))
    name = _tensor_file(state.round)
    write_atomically(folder / name, blob, then=GO_ON)
    content = {
        "version": VERSION,
        "study": study_hash,
        "tensors": name,
        "sha256": digest(blob),
        "round": state.round,
        "released_round": state.released_round,
        "best_score": state.best_score,
        "best_val_dice": dict(sorted(state.best_val_dice.items())),
        "foreground_prior": state.foreground_prior,
        "participants": _PARTICIPANTS.dump_python(dict(sorted(state.participants.items())), mode="json"),
        "bytes_to_sites": state.bytes_to_sites,
        "bytes_from_sites": state.bytes_from_sites,
    }
    write_atomically(folder / "state.json", json.dumps(content, indent=1).encode(), then=GO_ON)
    for pattern in ("round-*.safetensors", ".*.part"):  # those before it, and what a process that was killed left
        for old in folder.glob(pattern):
            if old.name != name:
                old.unlink(missing_ok=True)


def load_state(folder: Path, study_hash: str) -> ServerState | None:
    """Return the last checkpoint in `folder`, or None if there is none.

    Raises:
        RunError: if it is damaged, of another version or of another study.
    """
    file = folder / "state.json"
    if not file.exists():
        return None
    try:
        content = parse_json(file.read_text(), origin=file.name)
        version, found_study = content.pop("version"), content.pop("study")
        name, expected = content.pop("tensors"), content.pop("sha256")
        if version != VERSION:
            raise RunError(f"{file} has version {version}, this software reads {VERSION}.")
        if found_study != study_hash:
            raise RunError(
                f"{folder} holds a run of another study ({found_study[:12]}, not {study_hash[:12]}). "
                "Continue with the study file it was started with, or choose another run folder."
            )
        blob = (folder / name).read_bytes()
        if digest(blob) != expected:
            raise RunError(f"{folder / name} is damaged: its hash is not the one in state.json.")
        tensors = load(blob)
        known = _Saved.model_validate(content).as_state()
        if not all(np.isfinite(x).all() for x in tensors.values()):
            raise ValueError(f"{name} holds numbers that are not finite")
        if name != _tensor_file(known.round):
            raise ValueError(f"round {known.round} does not go with {name}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        wrong = problems(error, _Saved) if isinstance(error, ValidationError) else []
        why = "; ".join(f"{file.name} {each.key}: {each.text}" for each in wrong) or error
        raise RunError(
            f"cannot read the checkpoint in {folder}, it is damaged: {why}. Restore it from a backup, or start "
            "anew in another folder."
        ) from None

    def part(prefix: str) -> Tensors:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    return replace(known, components=part("components/"), released=part("released/"))


def _tensor_file(round_: int) -> str:
    return f"round-{round_:05d}.safetensors"


def fused_tensors(tensors: Mapping) -> Tensors:
    """Return the tensors of both branches and the head: what is released."""
    return select(tensors, FUSED)
