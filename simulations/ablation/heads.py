"""What an infusion head wins over a fixed share where a third probe has labels: per pixel, and per image.

`python -m simulations.ablation.heads --help`. The branches are those that a study's stages left. A head learns on
labelled patients of another scanner, whom neither branch has seen: the device shift that it learns under is a real one,
and that scanner is left out of the branches' training. All rows weigh the same two maps: temperatures stay at 1. Beside
the heads stands the best single weight of each image by its true mask: about what a head with one weight an image could
reach at most. The target's test masks measure here, and choose nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated

import torch
import typer
from torch import Tensor

from clients.data.dataset import Dataset, Sample, by_patient
from clients.data.frames import Frame
from clients.data.site import load_site
from clients.learning.infuse import fusion_loss
from clients.learning.scoring import sample_dice
from common.components import BRANCHES
from common.infusion import Fusion, fuse, predict_maps, without_small_parts
from common.networks import InfusionHead, Networks
from common.options import Seed, StudyFile, only
from common.seeds import derive_seed
from common.study import CLOSING_SCORE, Study, load_study
from common.tasks import Infuse
from server.state import fused_tensors
from simulations.ablation.comparison import difference
from simulations.ablation.stage_cache import StageCache
from simulations.publication import origin, write_figures
from simulations.simulate import open_sites

#: Steps of a head, of a batch of images each.
STEPS, BATCH = 300, 8
#: Weights of the source branch among which, beside the study's share, the best one of an image is looked for.
WEIGHTS = [i / 20 for i in range(21)]
#: How the rows are named where they are written.
FIXED, BEST = "fixed share", "best weight of each image, by its mask"


class ImageHead(InfusionHead):
    """A head with one weight for the whole image: from the mean evidence, not from each pixel's."""

    def forward(self, evidence: Tensor) -> Tensor:
        """Return w in (0, 1), [B, 1, 1, 1]."""
        return super().forward(evidence.mean((-2, -1), keepdim=True))


@dataclass(frozen=True)
class Said:
    """What both branches say of a frame: logits [1, 1, h, w] of its content alone, without padding."""

    sample: Sample
    source: Tensor
    target: Tensor

    def fused(self, head: InfusionHead) -> Fusion:
        """Return the fusion under a head."""
        return fuse(head, self.source, self.target)

    def content(self, x: Tensor) -> Tensor:
        """Return the part [1, 1, h, w] of a map on the grid [H, W] that the branches' maps cover."""
        height, width = self.source.shape[-2:]
        return x[None, None, :height, :width]

    def dice(self, p: Tensor, study: Study) -> float:
        """Return the Dice of a map [1, 1, h, w] as it would be released, in [0, 1]."""
        whole = torch.zeros(self.sample.image.shape)
        self.content(whole).copy_(p)
        return sample_dice(without_small_parts(whole * self.sample.valid, study.smallest_part), self.sample)


def said(networks: Networks, study: Study, data: Dataset, frames: Sequence[Frame]) -> list[Said]:
    """Return what both branches say of labelled frames, before small parts are dropped."""
    whole, found = study.model_copy(update={"smallest_part": 0.0}), []
    for frame in frames:
        sample = data.labelled(frame)
        maps = predict_maps(networks, whole, sample.image, sample.valid, BRANCHES)
        height, width = sample.place.content
        source, target = (torch.logit(maps[name][None, None, :height, :width], eps=1e-6) for name in BRANCHES)
        found.append(Said(sample, source, target))
    return found


def learnt(
    kind: type[InfusionHead], share: float, lessons: Sequence[Said], shrinkage: float, seed: int
) -> InfusionHead:
    """Return a head that learnt from what the branches say of labelled frames, by the loss of `infuse`.

    Of one seed all begin with the same weights and see the same draws.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(b"heads", "weights", seed))
        head = kind(share)
    head.log_temperature.requires_grad_(False)
    generator = torch.Generator().manual_seed(derive_seed(b"heads", "draws", seed))
    optimizer = torch.optim.AdamW((p for p in head.parameters() if p.requires_grad), Infuse().learning_rate)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for i in torch.randperm(len(lessons), generator=generator)[:BATCH].tolist():
            own = lessons[i]
            assert own.sample.truth is not None
            truth, valid = own.content(own.sample.truth), own.content(own.sample.valid.float())
            (fusion_loss(own.fused(head), truth, valid, shrinkage, head.share).sum() / BATCH).backward()
        optimizer.step()
    return head


@torch.no_grad()
def rows_of(heads: dict[str, InfusionHead], study: Study, own: Said) -> dict[str, float]:
    """Return the Dice in [0, 1] of each head, branch and fixed weight on a frame."""
    found = {name: own.dice(own.fused(head).infusion, study) for name, head in heads.items()}
    source, target = torch.sigmoid(own.source), torch.sigmoid(own.target)
    found |= {"source branch": own.dice(source, study), "target branch": own.dice(target, study)}
    of_weight = {w: own.dice(w * source + (1 - w) * target, study) for w in (*WEIGHTS, study.source_share)}
    return found | {"average": of_weight[0.5], BEST: max(of_weight.values())}


def main(
    study_file: StudyFile,
    source: Annotated[Path, typer.Option(metavar="DIR", help="labelled site folder that the branches are trained on")],
    target: Annotated[Path, typer.Option(metavar="DIR", help="site folder whose test patients have masks")],
    other: Annotated[Path, typer.Option(metavar="DIR", help="labelled site folder that the heads learn on")],
    stages: Annotated[Path, typer.Option(metavar="DIR", help="folder `stages` of an ablation, trained or not")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON file to write")],
    seed: Seed = 0,
) -> None:
    """Train heads for STUDY's branches on a third probe and write what they win over a fixed share on the target."""
    out.parent.mkdir(parents=True, exist_ok=True)  # not after an hour
    torch.set_num_threads(1)
    study = load_study(study_file).model_copy(update={"seed": seed})
    cache = StageCache(study, open_sites([source, target], study), stages)
    networks = Networks(study)
    state = cache.train([*study.stages, CLOSING_SCORE])
    networks.load({**fused_tensors(state.components), **state.released})
    third = Dataset(load_site(other), study)
    lessons = said(networks, study, third, [frame for frame in third.site.frames if frame.mask is not None])
    share, held = study.source_share, Infuse().shrinkage
    heads = {FIXED: InfusionHead(share)}
    for name, kind in (("per pixel", InfusionHead), ("per image", ImageHead)):
        heads[f"head {name}"] = learnt(kind, share, lessons, 0.0, seed)
        heads[f"head {name}, held near the share"] = learnt(kind, share, lessons, held, seed)
    unlabelled = cache.data[cache.sites[1].config.name]
    rows: dict[str, dict[str, float]] = {}
    for patient, frames in by_patient(unlabelled.site.frames_of("test", labelled=True)).items():
        of_frames = [rows_of(heads, study, own) for own in said(networks, study, unlabelled, frames)]
        for name in of_frames[0]:
            rows.setdefault(name, {})[patient] = mean(found[name] for found in of_frames)
    content = {
        **origin("simulations.ablation.heads", seed),
        "study": study_file.name,
        "pair": [site.config.name for site in cache.sites],
        "other": third.site.config.name,
        "share": share,
        "dice": {name: mean(own.values()) for name, own in rows.items()},
        "difference": {
            name: difference([own], [rows[FIXED]], same_patients=True).as_json()
            for name, own in rows.items()
            if name != FIXED
        },
    }
    write_figures(out, content)


if __name__ == "__main__":
    only(
        main,
        "python -m simulations.ablation.heads configs/pretrained.yaml --source runs/busbra/ge-logiq7 "
        "--target runs/busbra/toshiba-aplio300 --other runs/busbra/ge-logiq5 --stages runs/heads --out heads.json",
    )
