"""Segment a folder of PNG images with a run's released model: masks, confidence maps, overlays."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from clients.data.images import PictureError, decode_grey
from common.components import component_of
from common.errors import RunError
from common.geometry import from_grid, placement, to_grid
from common.infusion import predict_maps
from common.networks import Networks
from common.release import WEIGHTS
from common.study import Study

#: Overlay colour of the mask's outline: orange is told apart from grey by colour-blind readers too.
OUTLINE = (255, 149, 0)


@dataclass(frozen=True)
class Model:
    """A released model and the study it belongs to. `fused` is False for a baseline's single branch."""

    study: Study
    networks: Networks
    fused: bool

    def probability(self, image: np.ndarray, spacing_mm: float | None) -> np.ndarray:
        """Return the foreground probability [H, W] in [0, 1] of an image [H, W] in [0, 1].

        Raises:
            StudyError: if the study needs the image's spacing and there is none.
        """
        grid = self.study.image
        place = placement(image.shape[0], image.shape[1], spacing_mm, grid)
        pixels, valid = to_grid(image, place, grid, stride=self.study.network.stride)
        maps = predict_maps(self.networks, self.study, pixels, valid)
        return from_grid(maps["infusion" if self.fused else "source_branch"], place).numpy()


def load_model(release: Path, study: Study) -> Model:
    """Return the model of a release, see `common.release`.

    Raises:
        RunError: if there is none, or it does not fit the study's network.
    """
    file = release / WEIGHTS
    try:
        tensors = {name: value.numpy() for name, value in load_file(file).items()}
        networks = Networks(study)
        networks.load(tensors)
    except (OSError, SafetensorError):
        raise RunError(f"{release} holds no model: {file.name} is missing or damaged.") from None
    except RuntimeError as error:
        raise RunError(f"{file} does not fit the study beside it: {error}") from None
    networks.requires_grad_(False)
    return Model(study, networks, fused=any(component_of(name) == "infusion_head" for name in tensors))


def predict_folder(
    model: Model,
    images: Path,
    out: Path,
    *,
    spacing_mm: float | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Segment every PNG below `images` and return one line for each that could not be read.

    Writes, with the same relative names and pixel sizes as the images: `masks/` (0 and 255),
    `confidence/` (0: undecided, p = 0.5, to 255: certain, p = 0 or 1) and `overlays/` (the mask's
    outline on the image).

    Raises:
        RunError: if `images` holds no PNG, or `out` cannot be written.
        StudyError: if the study needs a spacing and none is given.
    """
    files = sorted(p for p in images.rglob("*") if p.suffix.lower() == ".png" and p.is_file())
    if not files:
        raise RunError(f"{images} holds no PNG images. Give the folder that holds them with --images.")
    problems = []
    for done, file in enumerate(files, 1):
        name = file.relative_to(images)
        try:
            pixels = decode_grey(file, "image")
        except PictureError as error:
            problems.append(f"{name}: {error.message}. {error.remedy}.")
            continue
        image = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
        p = model.probability(image, spacing_mm)
        mask = p > 0.5
        try:
            _save(out / "masks" / name, mask.astype(np.uint8) * 255)
            _save(out / "confidence" / name, np.rint(np.abs(2 * p - 1) * 255).astype(np.uint8))
            _save(out / "overlays" / name, overlay(image, mask))
        except OSError as error:
            raise RunError(f"cannot write to {out}: {error.strerror}. {done - 1} images are done.") from None
        progress(done, len(files))
    return problems


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image [H, W] in [0, 1] with the outline of a bool mask, as uint8 [H, W, 3]."""
    inner = torch.nn.functional.max_pool2d(1 - torch.from_numpy(mask[None].astype(np.float32)), 3, 1, 1)[0].numpy()
    outline = mask & (inner > 0)
    picture = np.repeat(np.rint(image * 255).astype(np.uint8)[..., None], 3, axis=2)
    picture[outline] = OUTLINE
    return picture


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
