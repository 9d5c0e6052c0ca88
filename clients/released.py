"""A released model, read whole or not at all: a damaged one would draw outlines that look like any other."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from safetensors import SafetensorError
from safetensors.numpy import load

from common.components import BRANCHES, FUSED, STUDENT, Tensors
from common.contract import MAX_MODEL_NORM, check_tensors
from common.errors import ContractError, RunError
from common.geometry import from_grid, placement, to_grid
from common.infusion import predict_maps
from common.networks import Networks
from common.release import STUDY, WEIGHTS, find_release
from common.strict_text import TextError, read_yaml
from common.study import Study, read_study_of_run


@dataclass(frozen=True)
class Model:
    """A released model and the study it belongs to.

    Attributes:
        predictor: the map that it draws: `infusion`, or that of one network.
    """

    study: Study
    networks: Networks
    predictor: str

    def maps(self, image: np.ndarray, spacing_mm: float | None) -> dict[str, np.ndarray]:
        """Return the foreground probability [H, W] in [0, 1] of an image [H, W] in [0, 1], by predictor.

        They are `infusion` and the branches that it fuses, or the one network there is.

        Raises:
            StudyError: if the study needs the image's spacing and there is none.
        """
        grid = self.study.image
        place = placement(image.shape[0], image.shape[1], spacing_mm, grid)
        pixels, valid = to_grid(image, place, grid, stride=self.study.network.stride)
        names = (*BRANCHES, "infusion") if self.predictor == "infusion" else (self.predictor,)
        found = predict_maps(self.networks, self.study, pixels, valid, names)
        return {name: from_grid(found[name], place).numpy() for name in names}

    def probability(self, image: np.ndarray, spacing_mm: float | None) -> np.ndarray:
        """Return the model's own map of `maps`. Raises StudyError."""
        return self.maps(image, spacing_mm)[self.predictor]


def load_model(folder: Path, key: Ed25519PublicKey | None = None, *, network: str | None = None) -> Model:
    """Return the model of a release: exactly the tensors of its study, in float32, all finite.

    Args:
        folder: a release, or the finished run that holds it, see `common.release`.
        key: the coordinator's, who must have signed it.
        network: `source_branch`, `target_branch` or `student` alone instead of the whole.

    Raises:
        StudyError: if its study cannot be read.
        RunError: if there is no release, it is not whole, the study beside the model is not the one of the run, or
            it does not have the network.
    """
    release = find_release(folder, key)
    study = read_study_of_run(release)
    try:
        recorded = read_yaml(release / STUDY)["hash"]  # type: ignore[index]
    except (OSError, TextError, TypeError, KeyError):
        recorded = None
    if recorded != study.hash():
        raise RunError(
            f"{release / STUDY} was changed after the run, or is of another version of this software: its hash is not "
            "the one it records. Get the release again; nothing was segmented."
        )
    if network == "student" and study.student is None:
        raise RunError(
            f"expected a student in {release}, found none: study `{study.name}` has no `distil` stage. Take one of the "
            "branches, or train the study with one, see docs/export.md."
        )
    if network in BRANCHES and network not in study.learnt:
        raise RunError(
            f"expected a trained {network} in {release}, found none: study `{study.name}` trains "
            f"{' and '.join(study.learnt)} alone. Leave --network out."
        )
    file = release / WEIGHTS
    tensors = _tensors(file)
    networks = Networks(study)
    expected = (*FUSED, *(STUDENT if study.student is not None else ())) if study.fused else FUSED[:2]
    try:
        check_tensors(tensors, networks.shapes(expected), max_norm=MAX_MODEL_NORM)
    except ContractError as error:
        raise RunError(
            f"{file} is not the model of the study beside it ({error}). Get the release again; nothing was segmented."
        ) from None
    networks.load(tensors)
    networks.requires_grad_(False)
    return Model(study, networks, network or ("infusion" if study.fused else "source_branch"))


def _tensors(file: Path) -> Tensors:
    try:
        return load(file.read_bytes())
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}. Give the folder of a finished run.") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:  # also: a dtype numpy lacks
        raise RunError(f"{file} is damaged or of another kind ({type(error).__name__}). Get it again.") from None
