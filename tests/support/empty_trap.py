"""Weights that look trained and rebuild images all the same, where a study hides all of an image."""

import torch
from torch.nn import functional as F

from common.networks import initial_networks
from common.study import Study
from simulations.audit.step import small
from simulations.audit.trap import MimTrap


class EmptyTrap(MimTrap):
    """`MimTrap` with an encoder that nobody touched: where all is hidden, every image gives the features of none.

    Only `mim_decoder.mix` is made, and is the seeded one but for its answer to these few features, which are next to
    nothing among all that a filter can see. No check of weights tells it from a trained one.
    """

    def __init__(self, study: Study) -> None:
        self.study, size = study, study.image.size
        networks = initial_networks(study)
        mix = networks.mim_decoder.mix
        with torch.no_grad():
            features = networks.target_branch.encoder(torch.zeros(1, 1, size, size))[-1]
            seen = F.unfold(features, 3, padding=1)[0].T.double()  # [positions, numbers of a filter]
            filters = mix.weight.flatten(1).double()
            wanted = small(study) * torch.rand(
                len(filters), len(seen), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
            )
            filters += (wanted - filters @ seen.T) @ torch.linalg.pinv(seen).T
            mix.weight.copy_(filters.reshape(mix.weight.shape))
            assert mix.bias is not None
            mix.bias.zero_()
            codes = F.leaky_relu(mix(features), 0.1)[0].flatten(1).double()
        self.decode = torch.linalg.pinv(codes)  # [positions, channels]
        self.tensors = networks.export(("target_branch.encoder", "mim_decoder"))
