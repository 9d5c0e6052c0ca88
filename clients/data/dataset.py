"""A site's images on the study's grid, cached in memory, and batches of them by patient."""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Generator, Tensor

from clients.data.findings import Finding, SiteFolderError
from clients.data.frames import Frame, read_image, read_mask
from clients.data.site import Site
from clients.governance.cohorts import Counting, everyone, spaced
from common.components import Split
from common.geometry import Placement, placement, to_grid
from common.study import Study
from common.study_settings import ImageGrid


@dataclass(frozen=True)
class Sample:
    """One frame on the grid: image [h, w] in [0, 1], valid [h, w] bool, truth [h, w] in {0, 1} or None."""

    frame: Frame
    place: Placement
    image: Tensor
    valid: Tensor
    truth: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Tiles of several patients, each [B, 1, S, S]: image in [0, 1], valid and maps as floats.

    `maps` are whatever the caller attached to the samples: truth, or pseudo-labels and their weight.
    """

    image: Tensor
    valid: Tensor
    maps: Tensor


#: Pixels on the grid that a site keeps in memory, 9 bytes each with the mask's: 4,096 frames of 256 x 256 are 2.4 GB.
KEPT_PIXELS = 2**28


class Dataset:
    """The frames of one site as a study sees them. Keeps those that it was asked for last, and reads others again.

    Args:
        counting: says over whose frames numbers are taken; training and its pseudo-labels see all.
    """

    def __init__(self, site: Site, study: Study, counting: Counting = everyone) -> None:
        self.site, self.counting = site, counting
        self.grid, self.stride = study.image, study.network.stride
        kept = lru_cache(max(1, KEPT_PIXELS // self.grid.size**2))
        # Of functions, not methods: a cache that holds `self` would keep the images until the garbage collector runs.
        self._sample = kept(partial(_read_sample, grid=self.grid, stride=self.stride))
        self._truth = kept(partial(_read_truth, grid=self.grid, stride=self.stride))

    def sample(self, frame: Frame) -> Sample:
        """Return a frame without its mask; the mask's file is not opened.

        Raises:
            StudyError: if the study needs a spacing that the frame lacks.
        """
        return self._sample(frame)

    def labelled(self, frame: Frame) -> Sample:
        """Return a frame with its mask on the grid."""
        return replace(self.sample(frame), truth=self._truth(frame))

    def draw(self, split: Split, count: int, generator: Generator) -> list[Frame]:
        """Draw `count` different patients of a split (all of them, with repeats, if fewer) and a frame of each.

        Raises:
            SiteFolderError: if the split has no patients.
        """
        frames = by_patient(self.site.frames_of(split))
        patients = sorted(frames)
        if not patients:
            raise SiteFolderError(
                [
                    Finding(
                        "no-patients",
                        "manifest.csv",
                        f"expected {split} patients to draw from, found none",
                        f"Give some patients the split {split}; `crossprobe site check --study` tells which are needed",
                    )
                ]
            )
        order: list[int] = []
        while len(order) < count:
            order += torch.randperm(len(patients), generator=generator).tolist()
        chosen = [frames[patients[i]] for i in order[:count]]
        picks = torch.rand(count, generator=generator).tolist()
        return [frames[int(pick * len(frames))] for frames, pick in zip(chosen, picks, strict=True)]

    def overview(self, split: Split, most: int) -> list[Frame]:
        """Return the middle frame of up to `most` patients, evenly spaced in sorted order: always the same."""
        frames = by_patient(self.site.frames_of(split))
        return [_middle(frames[patient]) for patient in spaced(sorted(frames), most)]

    def counted(self, split: Split, *, labelled: bool | None = None, most: int | None = None) -> dict[str, list[Frame]]:
        """Return the frames of those patients over whom a number about a split is taken, in sorted order.

        Args:
            labelled: with True only patients and frames with a mask.
            most: patients that the number looks at; None: all.

        Raises:
            SiteStateError: if the site cannot keep who they are, see `clients.governance.cohorts`.
        """
        frames = by_patient(self.site.frames_of(split, labelled))
        return {patient: frames[patient] for patient in self.counting(split, sorted(frames), most)}

    def counted_overview(self, split: Split, most: int | None = None) -> list[Frame]:
        """Return the middle frame of each of those over whom a number about a split is taken, see `counted`."""
        return [_middle(frames) for frames in self.counted(split, most=most).values()]


def _read_sample(frame: Frame, grid: ImageGrid, stride: int) -> Sample:
    place = placement(frame.height, frame.width, frame.spacing_mm, grid)
    image, valid = to_grid(read_image(frame), place, grid, stride=stride)
    return Sample(frame, place, image, valid)


def _read_truth(frame: Frame, grid: ImageGrid, stride: int) -> Tensor:
    place = placement(frame.height, frame.width, frame.spacing_mm, grid)
    soft, _ = to_grid(read_mask(frame).astype(np.float32), place, grid, stride=stride)
    return (soft >= 0.5).float()


def _middle(frames: list[Frame]) -> Frame:
    return frames[len(frames) // 2]


def by_patient(frames: list[Frame]) -> dict[str, list[Frame]]:
    """Group frames by patient; the unit of sampling, metrics and privacy."""
    groups: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[frame.patient].append(frame)
    return dict(groups)


def tiles(samples: list[Sample], maps: list[Tensor], side: int, generator: Generator | None) -> Batch:
    """Cut one tile of each sample, at random, or from the middle without a generator.

    Args:
        samples: each at least `side` on both sides.
        maps: [C, h, w] each, cut at the same place.
    """
    images, valids, cut_maps = [], [], []
    for sample, of_sample in zip(samples, maps, strict=True):
        room = [sample.image.shape[0] - side, sample.image.shape[1] - side]
        share = [0.5, 0.5] if generator is None else torch.rand(2, generator=generator).tolist()
        top, left = (int(s * (r + 1)) if generator is not None else r // 2 for s, r in zip(share, room, strict=True))
        window = (slice(top, top + side), slice(left, left + side))
        images.append(sample.image[window][None])
        valids.append(sample.valid[window][None].float())
        cut_maps.append(of_sample[(slice(None), *window)])
    return Batch(torch.stack(images), torch.stack(valids), torch.stack(cut_maps))
