"""What is kept of a variant once its stages are trained: its patients' Dice and its cost, or its course."""

from collections.abc import Mapping
from typing import Any

from common.components import Role
from common.stage import Stage
from common.study import CLOSING_SCORE
from server.state import fused_tensors
from simulations.ablation.stage_cache import StageCache
from simulations.ablation.variants import Variant


def measure(
    cached: StageCache, variant: Variant, stages: list[Stage], pooled: bool, roles: Mapping[str, Role]
) -> dict[str, Any]:
    """Return cost, and site -> row -> patient -> Dice of a variant's released model."""
    state = cached.train(stages, pooled)
    if set(variant.rows.values()) != {"source_branch"} and not pooled:
        # As the server ends every fused study: the last model is scored, so that it can be the released one.
        state = cached.train([*stages, CLOSING_SCORE])
    measured = cached.measure({**fused_tensors(state.components), **state.released}, sorted(set(variant.rows.values())))
    seconds, bytes_ = cached.cost(stages, pooled)
    return {
        "seconds": seconds,
        "bytes": bytes_,
        "sites": {
            site: {
                "role": roles[site],
                "rows": {row: of_predictor[predictor] for row, predictor in variant.rows.items()},
            }
            for site, of_predictor in measured.items()
        },
    }


def course(cached: StageCache, stages: list[Stage], roles: Mapping[str, Role]) -> dict[str, Any]:
    """Return the target's mean Dice in [0, 1], of the branches' average, after each round of the last stage."""
    means = []
    for tensors in cached.each_round(stages):
        sites = cached.measure(tensors, ["average"])
        dice = [x for site, rows in sites.items() if roles[site] == "target" for x in rows["average"].values()]
        means.append(sum(dice) / len(dice))
    return {"course": means}
