"""Batches as a network sees them: tiles under a random view, standardised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from clients.data.dataset import Batch, Dataset, tiles
from clients.data.frames import Frame
from common.artefact_settings import Artefact
from common.augment import augment
from common.geometry import standardise
from common.study_settings import Augmentation


@dataclass(frozen=True)
class View:
    """A random view of a batch, each [B, C, S, S].

    Attributes:
        image: grey levels in [0, 1], C = 1.
        x: what the networks read: mean 0 and deviation 1 within each image's field of view, C = 1.
        maps: what went with the images (truth, pseudo-labels and their weight), moved alike.
        valid: 1 in the image, 0 on padding and on what moved in from outside, C = 1.
    """

    image: Tensor
    x: Tensor
    maps: Tensor
    valid: Tensor


def view(
    batch: Batch,
    augmentation: Augmentation,
    generator: Generator,
    strength: float | None = None,
    artefacts: Mapping[Artefact, float] | None = None,
) -> View:
    """Return a random view of a batch.

    Args:
        strength: of the simulated device shift in [0, 1]; None takes the augmentation's own.
        artefacts: kind -> strength in [0, 1], see `common.artefacts`.
    """
    maps = torch.cat([batch.maps, batch.valid], 1)
    image, moved = augment(batch.image, maps, augmentation, generator, strength=strength, artefacts=artefacts)
    maps, valid = moved[:, :-1], moved[:, -1:]
    return View(image, standardise(image, valid > 0), maps, valid)


def labelled_tiles(data: Dataset, frames: Sequence[Frame], side: int, generator: Generator) -> Batch:
    """Return a random tile of each labelled frame; `maps` is the truth in {0, 1}, [B, 1, side, side]."""
    samples = [data.labelled(frame) for frame in frames]
    return tiles(samples, [s.truth[None] for s in samples if s.truth is not None], side, generator)
