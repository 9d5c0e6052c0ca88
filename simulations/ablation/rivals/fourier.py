"""Fourier domain adaptation: supervised training on images that have the target's amplitudes at low frequencies.

FDA, Yang and Soatto 2020, arXiv 2004.05498. With `A` the amplitudes and `P` the phases of an image `x`, and a window of
the lowest frequencies, up to `beta` times the image's side in each direction:

    x' = inverse transform of (A of the target within the window, A of x elsewhere; P of x)

No image travels in a federation: the target's amplitudes are their mean over its patients, and not one drawn image's,
as LADD shares them (Shenaj et al. 2023, arXiv 2210.02326). Here they are read in the same process and stand in the
stage's settings; in this engine no task of a target may send them. The paper's rounds of self-training, and the entropy
on the target, are left out: of the methods compared this one is the one that only changes the source's images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clients.data.dataset import Dataset, Sample
from clients.data.frames import Frame
from clients.data.site import Site
from clients.learning import supervise
from clients.learning.training import Objective, TaskContext
from common.stage import Stage
from common.study import Study
from common.tasks import Supervise

#: The middle one of the paper's 0.01, 0.05 and 0.09: at 64 pixels 0.01 is the image's mean alone, which standardising
#: takes away again.
BETA = 0.05


class FourierSupervise(Supervise):
    """`supervise` on images with the target's low amplitudes.

    Attributes:
        amplitudes: mean over the target's patients, see `low_amplitudes`.
    """

    implementation: ClassVar[str] = __name__
    meaning: ClassVar[str] = "trains on your labelled images, made to look like another probe's"
    task: Literal["fourier_supervise"] = "fourier_supervise"  # type: ignore[assignment]  # a name of its own
    amplitudes: tuple[tuple[float, ...], ...]


def low_amplitudes(image: Tensor, most: int) -> Tensor:
    """Return the amplitudes of [h, w]'s lowest frequencies, [2 most + 1, most + 1] in the image's grey levels.

    Rows are -most to most cycles down the image, columns 0 to most across it; the rest of the window mirrors them.
    """
    return torch.fft.rfft2(image, norm="forward")[_lowest(most)].abs()


def translated(image: Tensor, amplitudes: Tensor) -> Tensor:
    """Return [h, w] in [0, 1] with these `low_amplitudes` in the place of its own."""
    spectrum = torch.fft.rfft2(image, norm="forward")
    window = _lowest(amplitudes.shape[1] - 1)
    spectrum[window] = torch.polar(amplitudes, spectrum[window].angle())
    return torch.fft.irfft2(spectrum, s=list(image.shape), norm="forward").clamp(0, 1)


def _lowest(most: int) -> tuple[Tensor, slice]:
    return torch.arange(-most, most + 1), slice(most + 1)


def _content(sample: Sample) -> Tensor:
    """Return a sample's image without its padding, whose edge would be most of a spectrum."""
    height, width = sample.place.content
    return sample.image[:height, :width]


class Translated(Dataset):
    """A site's data whose labelled images have other low amplitudes."""

    def __init__(self, site: Site, study: Study, amplitudes: Sequence[Sequence[float]]) -> None:
        super().__init__(site, study)
        self.amplitudes = torch.tensor(amplitudes)

    def labelled(self, frame: Frame) -> Sample:
        """Return a frame with its mask, translated; padding stays 0."""
        sample = super().labelled(frame)
        sample = replace(sample, image=sample.image.clone())
        _content(sample).copy_(translated(_content(sample), self.amplitudes))
        return sample


def objective(context: TaskContext) -> Objective:
    """Return the loss of `supervise` on the translated images."""
    task = context.task
    assert isinstance(task, FourierSupervise)
    data = Translated(context.data.site, context.study, task.amplitudes)
    return supervise.objective(replace(context, data=data))


def mean_amplitudes(targets: Iterable[Dataset]) -> tuple[tuple[float, ...], ...]:
    """Return the mean of `low_amplitudes` over all training patients of target sites, one frame each."""
    found = [
        low_amplitudes(_content(data.sample(frame)), int(BETA * data.grid.size))
        for data in targets
        for frame in data.overview("train", len(data.site.patients("train")))
    ]
    return tuple(map(tuple, torch.stack(found).mean(0).tolist()))


def at_the_source(stages: Iterable[Stage], targets: Iterable[Dataset]) -> list[Stage]:
    """Return supervised stages on images with the targets' mean low amplitudes."""
    amplitudes = mean_amplitudes(targets)
    return [
        stage.model_copy(
            update={"source": FourierSupervise(**stage.source.model_dump(exclude={"task"}), amplitudes=amplitudes)}
        )
        for stage in stages
        if stage.source is not None
    ]
