"""What a score of models is worth on a pool whose true Dice is known: failures found, order kept, what its pick costs.

Torch-free: from the rows that `simulations.ablation.ranking` wrote, so that docs/results.md is made from these alone.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from scipy.stats import mannwhitneyu, spearmanr

#: Scores that are named here and there; the first two the product has.
TODAYS, SOURCE, INFORMATION = "today's score", "Dice on the source", "information"
#: Dice that a planted candidate has to lose to be a failure.
HARM = 0.1
#: How far below the best Dice on the source a model may be and still be ranked, the release's own tolerance.
NEAR = 0.05
#: A rule of two scores, see `gated`.
GATED = f"{INFORMATION} of those near the best {SOURCE}"

Rows = Sequence[Mapping[str, Any]]


def auroc(failures: Sequence[float], honest: Sequence[float]) -> float:
    """Return the probability that a failure has the lower score, ties as a half: the area under the ROC curve."""
    return 1 - float(mannwhitneyu(failures, honest).statistic) / (len(failures) * len(honest))


def gated(rows: Rows) -> list[float]:
    """Return each row's information, in nats, less 1 where its Dice on the source is more than `NEAR` below the best.

    Information is in [0, log 2], so that whoever lost the labelled probe stands behind all others. Made up when the two
    pairs of BUS-BRA had been seen, and none of the phantoms of seed 801.
    """
    least = max(row["scores"][SOURCE] for row in rows) - NEAR
    return [row["scores"][INFORMATION] - (row["scores"][SOURCE] < least) for row in rows]


def judged(rows: Rows) -> dict[str, Any]:
    """Return what each score is worth on a pool.

    Args:
        rows: of candidates: name, whether it is planted, steps, parent, dice in [0, 1] and scores by name.

    A planted candidate is a failure if it ends at least `HARM` below the model that it came from; the others are named
    and left out. A score's regret is the true Dice of the best honest model less that of the one it picks among all;
    beside it stand that of the longest trained models, and the mean over all honest ones.
    """
    dice = {row["name"]: row["dice"] for row in rows}
    harmless = [row["name"] for row in rows if row["planted"] and row["dice"] > dice[row["parent"]] - HARM]
    left = [row for row in rows if row["name"] not in harmless]
    honest = [row for row in left if not row["planted"]]
    best = max(honest, key=lambda row: float(row["dice"]))
    longest = [row["dice"] for row in honest if row["steps"] == max(own["steps"] for own in honest)]
    scores = {name: [row["scores"][name] for row in left] for name in rows[0]["scores"]} | {GATED: gated(left)}
    found = {}
    for name, values in scores.items():
        of = {row["name"]: value for row, value in zip(left, values, strict=True)}
        mine = [of[row["name"]] for row in honest]
        picked = max(of, key=lambda own: float(of[own]))
        found[name] = {
            "auroc": auroc([of[row["name"]] for row in left if row["planted"]], mine),
            "rank_correlation": float(spearmanr(mine, [row["dice"] for row in honest]).statistic),
            "picked": picked,
            "regret": best["dice"] - dice[picked],
        }
    return {
        "honest": len(honest),
        "failures": len(left) - len(honest),
        "harmless": harmless,
        "best": best["name"],
        "dice": [min(row["dice"] for row in honest), best["dice"]],
        "regret_of_longest": best["dice"] - mean(longest),
        "regret_of_chance": best["dice"] - mean(row["dice"] for row in honest),
        "scores": found,
    }
