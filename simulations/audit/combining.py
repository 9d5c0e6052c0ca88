"""What many replies give together: their mean, or single images out of many different means of the same patients."""

import torch
from torch import Tensor

#: Directions weaker than this share of the strongest are rounding.
WEAKEST = 1e-3
#: Steps of the search for components, and turns between who was drawn and what the images then are.
ITERATIONS, TURNS = 200, 30


def mean(images: list[Tensor]) -> list[Tensor]:
    """Return the mean of images [S, S], which noise of its own in each does not outlast."""
    return [torch.stack(images).mean(0)]


def unmixed(images: list[Tensor], patients: int) -> list[Tensor]:
    """Return candidates [S, S] for the images that others [S, S] are means of, of so many chance ones each.

    Without noise a round's picture is a mean over whoever was drawn, and who was is chance. Independent component
    analysis over pixels (Hyvarinen 1999, FastICA) tells about whose part each round has. That `patients` of them were
    drawn, and all alike, sharpens it: the largest parts are taken for them, least squares give the images, these the
    parts anew. At most half as many images as rounds come out.
    """
    mixed = torch.stack(images).flatten(1).double()
    average = mixed.mean(0)
    parts = _mixing(mixed - average - (mixed - average).mean(1, keepdim=True))
    parts = parts * parts.pow(3).mean(0).sign()  # most rounds are without any one image
    parts = parts / parts.std(0)
    for _ in range(TURNS):
        drawn = torch.zeros_like(parts).scatter_(1, parts.topk(min(patients, parts.shape[1]), 1).indices, 1.0)
        # as many were drawn in every round, so that only differences from the average come out
        apart = torch.linalg.lstsq(drawn - drawn.mean(0), mixed - average, driver="gelsd").solution
        found = average + patients * apart
        parts = torch.linalg.lstsq(found.T, mixed.T, driver="gelsd").solution.T
    return list(found.reshape(-1, *images[0].shape))


def _mixing(x: Tensor) -> Tensor:
    """Return how independent components mix into x [R, P], whose columns are samples, [R, K]."""
    u, sizes, v = torch.linalg.svd(x, full_matrices=False)
    count = min(int((sizes > WEAKEST * sizes[0]).sum()), len(x) // 2)
    white = v[:count] * x.shape[1] ** 0.5
    generator = torch.Generator().manual_seed(0)
    turn = _orthogonal(torch.randn(count, count, generator=generator, dtype=torch.float64))
    for _ in range(ITERATIONS):
        own = torch.tanh(turn @ white)
        turn = _orthogonal(own @ white.T / x.shape[1] - (1 - own**2).mean(1)[:, None] * turn)
    return (u[:, :count] * sizes[:count]) @ turn.T


def _orthogonal(x: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return u @ v
