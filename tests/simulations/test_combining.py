"""Single images come out of many means of eight, where nothing but chance decides whose they are."""

import torch

from simulations.audit.combining import mean, unmixed


def pictures(count: int, side: int) -> torch.Tensor:
    """Bright blots on nothing, [count, side, side]: sparse, as parts of anatomy are."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centres = torch.rand(count, 3, 2, generator=torch.Generator().manual_seed(0)) * side
    ways = (rows[None, None] - centres[..., :1, None]) ** 2 + (columns[None, None] - centres[..., 1:, None]) ** 2
    return torch.exp(-ways / 6).sum(1).double()


def test_images_are_parted_again_from_means_over_chance_draws() -> None:
    images, generator = pictures(24, 32), torch.Generator().manual_seed(1)
    draws = [torch.randperm(24, generator=generator)[:6] for _ in range(120)]
    found = torch.stack(unmixed([images[drawn].mean(0) for drawn in draws], 6)).flatten(1)
    both = torch.cat([found, images.flatten(1)])
    alike = torch.corrcoef(both)[: len(found), len(found) :].abs().amax(0)
    assert (alike > 0.95).sum() >= 15
    assert torch.corrcoef(torch.stack([images[draws[0]].mean(0).flatten(), *images.flatten(1)]))[0, 1:].max() < 0.8


def test_a_mean_is_one_image() -> None:
    (found,) = mean([torch.zeros(2, 2), torch.ones(2, 2)])
    assert found.tolist() == [[0.5, 0.5], [0.5, 0.5]]
