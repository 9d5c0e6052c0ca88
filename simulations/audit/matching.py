"""Images out of one update by optimisation: an image and a mask are sought whose gradient is the one that was sent.

Geiping et al. 2020 (arXiv 2003.14053): cosine distance and total variation. No weight is crafted here. AdamW's first
step keeps only the gradient's signs, so signs are what is matched.
"""

import torch
from torch import Tensor

from common.components import HALVES
from common.losses import dice_cross_entropy
from common.networks import initial_networks
from common.stage import Round
from common.study import Study
from simulations.audit.ask import Site, ask
from simulations.audit.step import gradient_of

#: Weight of the total variation beside the cosine distance, as in the paper.
SMOOTHNESS = 1e-2


def match_gradient(site: Site, study: Study, round_: Round, *, iterations: int, seed: int) -> Tensor:
    """Return the image [S, S] that `supervise` on one patient was run on, as far as optimisation finds it.

    Raises:
        Refused: if the site refuses.
    """
    networks = initial_networks(study)
    branch, size = networks.source_branch, study.image.size
    updates = ask(site, study, round_, networks.export(HALVES["source_branch"]))
    trained = {f"source_branch.decoder/{name}": p for name, p in branch.decoder.named_parameters()}
    signs = torch.cat([gradient_of(updates[name], study, round_).sign().flatten() for name in trained]).float()
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 1, size, size, generator=generator).requires_grad_(True)
    mask = torch.zeros(1, 1, size, size, requires_grad=True)
    optimizer = torch.optim.Adam([image, mask], lr=0.1)
    for _ in range(iterations):
        optimizer.zero_grad()
        loss = dice_cross_entropy(branch(image), torch.sigmoid(mask), torch.ones_like(image)).mean()
        found = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(trained.values()), create_graph=True)])
        roughness = image.diff(dim=2).abs().mean() + image.diff(dim=3).abs().mean()
        distance = 1 - torch.cosine_similarity(found, signs * found.detach().abs().sqrt(), dim=0)
        (distance + SMOOTHNESS * roughness).backward()
        optimizer.step()
    return image.detach()[0, 0]
