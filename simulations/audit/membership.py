"""Was a patient in the training? Told from how well, and how surely, a released model does on his images.

The loss attack is Yeom et al. 2018 (arXiv 1709.01604), its measure at a low false-positive rate Carlini et al. 2022
(arXiv 2112.03570). Members are a site's `train` patients, non-members its `test` patients: same hospital, same device.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from clients.data.dataset import Dataset, by_patient
from clients.data.frames import Frame
from clients.data.site import Site
from clients.released import Model
from common.infusion import entropy, predict_maps

FALSE_POSITIVES = 0.01
RESAMPLES = 1000

#: Patient -> how much he looks like a member, no unit.
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Membership:
    """How well one attack tells members; each number with its 95 % interval over patients (percentile bootstrap).

    Attributes:
        auc: probability that a member looks more like one than a non-member; 0.5 is a guess.
        tpr: share of the members found at a false-positive rate of 1 %. Of fewer than 100 non-members, at none.
    """

    site: str
    attack: str
    members: int
    non_members: int
    auc: float
    auc_ci95: tuple[float, float]
    tpr: float
    tpr_ci95: tuple[float, float]


def membership(model: Model, site: Site, seed: int) -> Iterator[Membership]:
    """Yield what each attack finds that the site's masks allow; nothing without patients outside of the training."""
    if not site.patients("test"):
        return
    for attack, scores in scores_of(model, site).items():
        yield measured(site, attack, scores, seed)


def scores_of(model: Model, site: Site) -> dict[str, Scores]:
    """Return each attack's scores of a site's `train` and `test` patients: `loss` needs masks, `entropy` none.

    Of a logarithm, so that hard images differ as easy ones do.
    """
    data = Dataset(site, model.study)

    def signals(frame: Frame) -> dict[str, float]:
        """Return cross-entropy and entropy, nats a pixel."""
        sample = data.sample(frame)
        maps = predict_maps(model.networks, model.study, sample.image, sample.valid, [model.predictor])
        p = maps[model.predictor][sample.valid]
        found = {"entropy": float(entropy(p).mean())}
        if site.config.role == "target":
            return found
        truth = data.labelled(frame).truth
        assert truth is not None
        loss = torch.nn.functional.binary_cross_entropy(p.clamp(1e-6, 1 - 1e-6), truth[sample.valid])
        return {"loss": float(loss), **found}

    patients = by_patient(site.frames_of("train") + site.frames_of("test"))
    seen = {patient: [signals(frame) for frame in own] for patient, own in patients.items()}
    return {
        name: {patient: -float(np.log(np.mean([one[name] for one in own]))) for patient, own in seen.items()}
        for name in next(iter(seen.values()))[0]
    }


def measured(site: Site, attack: str, scores: Scores, seed: int) -> Membership:
    """Return how well scores of a site's `train` and `test` patients tell the ones from the others."""
    inside, outside = (np.array([scores[patient] for patient in site.patients(split)]) for split in ("train", "test"))
    rng = np.random.default_rng(seed)
    drawn = [(rng.choice(inside, len(inside)), rng.choice(outside, len(outside))) for _ in range(RESAMPLES)]

    def interval(measure: Callable[[np.ndarray, np.ndarray], float]) -> tuple[float, float]:
        low, high = np.quantile([measure(*pair) for pair in drawn], [0.025, 0.975])
        return float(low), float(high)

    return Membership(
        site=site.config.name,
        attack=attack,
        members=len(inside),
        non_members=len(outside),
        auc=area_under_curve(inside, outside),
        auc_ci95=interval(area_under_curve),
        tpr=true_positives(inside, outside),
        tpr_ci95=interval(true_positives),
    )


def area_under_curve(inside: np.ndarray, outside: np.ndarray) -> float:
    """Return the probability that a member's score is above a non-member's, a tie counting half."""
    difference = inside[:, None] - outside
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def true_positives(inside: np.ndarray, outside: np.ndarray) -> float:
    """Return the share of members above all but `FALSE_POSITIVES` of the non-members."""
    allowed = int(FALSE_POSITIVES * len(outside))
    return float((inside > np.sort(outside)[len(outside) - 1 - allowed]).mean())
