"""How like a site's images is what was rebuilt, and how like them would anything be that shows the same anatomy."""

from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clients.data.dataset import Dataset
from common.geometry import standardise


@dataclass(frozen=True)
class Match:
    """The image of the site that something rebuilt is most like.

    Attributes:
        correlation: Pearson's, over the pixels of the image, without padding.
        patient: whose image it is.
        other: the highest correlation with an image of any other patient: what anatomy and device alone give.
    """

    correlation: float
    patient: str
    other: float


class Gallery:
    """Sites' letterboxed training images [N, S, S] as networks see them, or tiles of them, to compare with."""

    def __init__(self, *of: Dataset) -> None:
        frames = [(data, frame) for data in of for frame in data.site.frames_of("train")]
        samples = [data.sample(frame) for data, frame in frames]
        self.patients = np.array([f"{data.site.config.name}/{frame.patient}" for data, frame in frames])
        self.valid = torch.stack([sample.valid for sample in samples])
        images = torch.stack([sample.image for sample in samples])
        self.images = standardise(images[:, None], self.valid[:, None])[:, 0]

    def cut(self, side: int) -> "Gallery":
        """Return the gallery of all tiles of `side` x `side` pixels without padding; of itself if that is its size."""
        count, size = len(self.images), self.images.shape[-1]
        if side == size:
            return self

        def tiles(x: Tensor) -> Tensor:
            return x.unfold(1, side, side).unfold(2, side, side).reshape(-1, side, side)

        own = copy(self)
        whole = tiles(self.valid).flatten(1).all(1)
        own.images, own.valid = tiles(self.images)[whole], tiles(self.valid)[whole]
        own.patients = np.repeat(self.patients, len(whole) // count)[whole.numpy()]
        return own

    def match(self, rebuilt: Tensor) -> Match:
        """Return the best match of a rebuilt image [S, S], whatever its scale and offset."""
        found = self.correlations(rebuilt)
        patient = self.patients[found.argmax()]
        return Match(float(found.max()), str(patient), float(found[self.patients != patient].max(initial=-1.0)))

    def correlations(self, rebuilt: Tensor) -> np.ndarray:
        """Return the correlation of a rebuilt image [S, S] with each image, [N]."""
        weight = self.valid.flatten(1).double()

        def unit(x: Tensor) -> Tensor:
            flat = x.flatten(1).double()
            flat = (flat - (flat * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)) * weight
            return flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-30)

        return (unit(self.images) * unit(rebuilt.expand(len(self.images), -1, -1))).sum(1).numpy()
