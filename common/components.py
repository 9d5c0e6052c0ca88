"""The words that everything else is said in: roles, splits, and the named groups of tensors that travel. Torch-free."""

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

Role = Literal["source", "target"]
ROLES: tuple[Role, ...] = ("source", "target")
Split = Literal["train", "calibrate", "val", "test"]
#: Tensors by contract name, `component/key`.
Tensors = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

#: Every component that a site may train and send back, and what it is in plain words.
MEANINGS = {
    "source_branch.encoder": "first half of the segmentation network that learns from labels",
    "source_branch.decoder": "second half of the segmentation network that learns from labels",
    "target_branch.encoder": "first half of the segmentation network for the unlabelled probe",
    "target_branch.decoder": "second half of the segmentation network for the unlabelled probe",
    "mim_decoder": "helper network that fills in hidden parts of images; not part of the released model",
    "projector": "helper network that compares views of an image; not part of the released model",
    "infusion_head": "small network that weighs the two branches pixel by pixel",
    "student.encoder": "first half of the small, fast network that learns what the whole model predicts",
    "student.decoder": "second half of the small, fast network that learns what the whole model predicts",
}
COMPONENTS = tuple(MEANINGS)
BRANCHES = ("source_branch", "target_branch")
#: The name of a segmentation network stands for both of its halves.
HALVES = {
    network: tuple(name for name in COMPONENTS if name.startswith(f"{network}.")) for network in (*BRANCHES, "student")
}
BRANCH_PARTS = tuple(half for branch in BRANCHES for half in HALVES[branch])
#: The small network of a study that distils; only such a study has it.
STUDENT = HALVES["student"]
#: The fused model: both branches and the head. What the score judges and what is released.
FUSED = (*BRANCH_PARTS, "infusion_head")
#: Read-only at a site: the model that an evaluation compares with.
BASELINE = ("baseline.encoder", "baseline.decoder")


def component_of(tensor: str) -> str:
    """Return the component a tensor's key belongs to: `target_branch.encoder/conv_0.w` -> before the slash."""
    return tensor.partition("/")[0]


def branches_of(components: Iterable[str]) -> list[str]:
    """Return the branches of which any part is among `components`, in a fixed order."""
    names = tuple(components)
    return [branch for branch in BRANCHES if any(name in HALVES[branch] for name in names)]


def select(tensors: Mapping[str, np.ndarray], components: Iterable[str]) -> Tensors:
    """Return the tensors that belong to `components`, in sorted order."""
    wanted = set(components)
    return {name: tensors[name] for name in sorted(tensors) if component_of(name) in wanted}
