"""Do received weights look as if somebody had trained them? Before any image is shown to them.

Weights that turn an update into a copy of images (Fowl et al. 2022, arXiv 2110.13057; Boenisch et al. 2023,
arXiv 2112.02918) need layers that are blind, that pass an image through unchanged, or that differ in scale by
orders. Training does none of that: it moves weights a little from where they began. In the trained networks of
docs/results.md every larger layer's spread stays within 1.5 of its initial one, every filter's within 1.4 of its
layer's, no layer is carried by a few weights (`concentration` at least 0.3), its filters differ (`likeness` at most
0.1), and a normalisation's scale is 0.8 to 1.6, in a student 0.24 to 1.1. The bounds below leave room beyond that.

Weights that began as public ones (`common.efficient_unet`) have no such statistics: photographs left filters of nothing
and others many times as large. But here it is known what each of them was, and they have to resemble it.

This makes such weights harder to write and their copies worse. It does not rule them out.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common.components import BASELINE, component_of, select
from common.efficient_unet import ScaledConv
from common.errors import ContractError
from common.networks import Networks, initial_networks
from common.study import Study

#: A tensor's root mean square over the initial one's, a filter's over its tensor's: at most this, at least 1 / this.
#: The last layer's few numbers grow by 5 in honest training; such small ones have `SMALL_SPREAD`.
SPREAD, SMALL_SPREAD, SMALL = 4.0, 16.0, 256
#: Least `concentration`: 5/9 for uniform numbers, 1/3 for normal ones, 1/n where one number is all.
CONCENTRATION = 0.1
#: Largest `likeness` of a layer's filters; many filters that are one, with other biases, compare it with thresholds.
LIKENESS = 0.3
#: Largest bias; it begins near 0.
BIAS = 2.0
#: Least and largest scale of a normalisation's channel, which begins at 1. Training lets go of a channel now and then:
#: in a student's 15th round of distillation one stood at 0.24.
LEAST_SCALE, MOST_SCALE = 0.125, 4.0
#: Most channels of a layer that no image moves, as a share; and how far an image has to move one, of its size. In
#: trained networks each moves by 0.07 or more, in crafted ones by nothing.
BLIND, MOVED = 0.1, 1e-3
#: Least `resemblance` of a tensor that began with public weights; honest training left 0.94 and more.
RESEMBLANCE = 0.85
#: Its spread over that of what it was: at most this, at least 1 / this; honest training left 0.98 to 1.07.
SPREAD_OF_PUBLIC = 1.3
#: How far an image has to move a channel after public weights: in trained layers nine of ten moved by 0.27 or more.
#: Scales differ so much that a cosine lets most of them be nothing, and then all but a hundredth of the image is lost.
MOVED_OF_PUBLIC = 0.05
#: Tensors of fewer numbers have no statistics but their spread.
LEAST = 16
#: Messages that passed last and are remembered: one of each role.
KEPT = 2


class Plausibility:
    """What a study's networks began as, and the check of what is received against it.

    Args:
        study: the site's own copy; components with weights of their own have no known beginning.
    """

    def __init__(self, study: Study) -> None:
        self.given = study.given
        networks = initial_networks(study)
        self.initial = networks.export((*study.components, *BASELINE))
        self.public = networks.public()
        self.inputs = _patterns(study.image.size)
        self._passed: deque[tuple[str, tuple[str, ...]]] = deque(maxlen=KEPT)

    def check(
        self, received: Mapping[str, np.ndarray], networks: Networks, components: Sequence[str], request: str
    ) -> None:
        """Check received tensors, which `networks` hold already.

        Args:
            components: that the task trains or trains through; others are only looked at.
            request: SHA-256 of the message that brought them: of many simulated sites in one process each hears the
                same, and what passed once would pass again.

        Raises:
            ContractError: `implausible-weights`, with what is wrong where; the text stays in the site's log.
        """
        if (request, tuple(components)) in self._passed:
            return
        found = [*self._statistics(select(received, components)), *self._blind(networks, components)]
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise ContractError("implausible-weights", "; ".join(found[:3]) + more)
        self._passed.append((request, tuple(components)))

    def _statistics(self, received: Mapping[str, np.ndarray]) -> Iterator[str]:
        for name, x in received.items():
            initial = self.initial[name]
            if name in self.public:  # of given weights too, as a study of this network left them
                yield from _unlike(name, x, initial)
                continue
            if x.ndim < 2:
                sizes = np.abs(x)
                least, most = (LEAST_SCALE, MOST_SCALE) if name.endswith("weight") else (0.0, BIAS)
                if sizes.size and not least <= sizes.min() <= sizes.max() <= most:
                    found = f"{sizes.min():.3g} to {sizes.max():.3g}"
                    yield f"{name}: expected sizes of {least:g} to {most:g}, found {found}"
                continue
            began = _spread(initial)
            if began == 0.0:  # the head's last layer begins at zero
                continue
            spread, most = _spread(x), SPREAD if x.size >= SMALL else SMALL_SPREAD
            if component_of(name) not in self.given and not began / most <= spread <= began * most:
                yield f"{name}: expected a spread near {began:.3g}, found {spread:.3g}"
            elif x.size < LEAST:
                continue
            elif (focus := concentration(x)) < CONCENTRATION:
                yield f"{name}: expected no few weights to be all, found a concentration of {focus:.3g}"
            elif (alike := likeness(x)) > LIKENESS:
                yield f"{name}: expected filters that differ, found a likeness of {alike:.3g}"
            else:
                for what, axis in (("output", 0), ("input", 1)):
                    each = _spreads(x, axis)
                    if (
                        x.size // len(each) >= LEAST
                        and not spread / SPREAD <= each.min() <= each.max() <= spread * SPREAD
                    ):
                        scales = f"{each.min():.3g} to {each.max():.3g}"
                        yield f"{name}: expected {what} channels of one scale, found {scales}"

    def _blind(self, networks: Networks, components: Sequence[str]) -> Iterator[str]:
        """Yield the layers of which many channels are the same for every input."""
        for branch in dict.fromkeys(name.partition(".")[0] for name in components if "." in name):
            network = networks.branch(branch)
            for name, out in _outputs(network, self.inputs).items():
                moved = (out[0] - out[1]).flatten(1).norm(dim=1) / out.flatten(2).norm(dim=2).amax(0).clamp(min=1e-12)
                least = MOVED_OF_PUBLIC if isinstance(network.get_submodule(name), ScaledConv) else MOVED
                share = float((moved < least).float().mean())
                if share > BLIND:
                    yield f"{branch}.{name}: expected channels that see the image, found {100 * share:.0f} % blind"


def _patterns(side: int) -> torch.Tensor:
    """Return two pictures that differ at every scale, [2, 1, side, side]; white noise alone is flat to deep layers."""
    generator = torch.Generator().manual_seed(0)
    x, cells = torch.zeros(2, 1, side, side), 2
    while cells <= side:
        noise = torch.randn(2, 1, cells, cells, generator=generator)
        x = x + F.interpolate(noise, size=(side, side), mode="bilinear", align_corners=False)
        cells *= 2
    return (x - x.mean((-2, -1), keepdim=True)) / x.std((-2, -1), keepdim=True)


def _unlike(name: str, x: np.ndarray, public: np.ndarray) -> Iterator[str]:
    """Yield in what a tensor does not resemble the public one that it began as."""
    began, spread, cosine = _spread(public), _spread(x), resemblance(x, public)
    if not cosine >= RESEMBLANCE:
        yield f"{name}: expected what resembles the public weights that it began as, found a cosine of {cosine:.3g}"
    elif not began / SPREAD_OF_PUBLIC <= spread <= began * SPREAD_OF_PUBLIC:
        yield f"{name}: expected a spread near {began:.3g}, found {spread:.3g}"
    elif x.ndim > 1:
        for what, axis in (("output", 0), ("input", 1)):
            each, was = _spreads(x, axis), _spreads(public, axis)
            most = np.maximum(was, began) * SPREAD
            # a channel that was next to nothing may stay so
            least = np.where(was < began / SPREAD, 0.0, was / SPREAD)
            if x.size // len(each) >= LEAST and not ((least <= each) & (each <= most)).all():
                yield f"{name}: expected {what} channels of the scales that they began with, found others"


def _outputs(network: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what each convolution of a network gives for the inputs, by its name.

    Not of those whose channels are dark on most images, as they began: what sums them up is among the others.
    """
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        return lambda module, given, out: outputs.__setitem__(name, out.detach())

    convolutions = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and not (isinstance(module, ScaledConv) and module.sparse)
    ]
    hooks = [module.register_forward_hook(keep(name)) for name, module in convolutions]
    with torch.no_grad():
        network(inputs)
    for hook in hooks:
        hook.remove()
    return outputs


def concentration(x: np.ndarray) -> float:
    """Return `(sum x^2)^2 / (n sum x^4)`, in (0, 1]: the share of the numbers that carry the whole; 0 for all zeros."""
    squares = np.square(x.astype(np.float64))
    fourth = float(np.square(squares).sum())
    return float(squares.sum()) ** 2 / (x.size * fourth) if fourth > 0 else 0.0


def likeness(x: np.ndarray) -> float:
    """Return the mean squared cosine between two filters of a layer, in [0, 1]; 0 for filters too small to tell.

    Filters drawn at random have 1 / n of it, where n is the numbers of a filter.
    """
    filters = x.reshape(len(x), -1).astype(np.float64)
    count, size = filters.shape
    if count < 4 or size < LEAST:
        return 0.0
    filters = filters / np.linalg.norm(filters, axis=1, keepdims=True).clip(min=1e-12)
    squares = np.square(filters @ filters.T)
    return float((squares.sum() - np.trace(squares)) / (count * (count - 1)))


def resemblance(x: np.ndarray, public: np.ndarray) -> float:
    """Return the cosine between a tensor and the public one that it began as, in [-1, 1]; 0 for all zeros."""
    both = x.size * _spread(x) * _spread(public)
    return float(np.vdot(x.astype(np.float64), public)) / both if both > 0 else 0.0


def _spread(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x.astype(np.float64)).mean()))


def _spreads(x: np.ndarray, axis: int) -> np.ndarray:
    return np.sqrt(np.square(x.astype(np.float64)).mean(tuple(i for i in range(x.ndim) if i != axis)))
