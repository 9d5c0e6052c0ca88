"""A run's course over its rounds, as numbers and as charts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from common.components import ROLES, Role
from common.study import Study
from server.algorithm import weighted
from server.history import RoundRecord
from server.report.charts import Band, Curve, Point, axis_over, round_chart
from server.report.spread import MANY_SITES
from server.state import ServerState


@dataclass(frozen=True)
class RoundNumbers:
    """One counted round; means over sites are weighted by their declared patients.

    Attributes:
        score, val_dice: in [0, 1], of the model, or the one branch, that sites received in this round.
        loss: role -> mean training loss of what the role did in this stage.
    """

    round: int
    stage: str
    score: float | None
    val_dice: float | None
    loss: dict[Role, float | None]
    rolled_back: bool
    seconds: float


class LossChart(NamedTuple):
    """The training losses of the sites of a role; of many sites the mean and the quartiles."""

    role: Role
    sites: int
    chart: Markup


def bands(study: Study) -> list[Band]:
    """Return the stages of a study on its round axis, the engine's closing ones included."""
    return [
        Band(name, first, own[-1].index - first + 1)
        for name, group in groupby(study.rounds(), lambda round_: round_.stage.name)
        for own in [list(group)]
        for first in [own[0].index]
    ]


def rounds(state: ServerState, records: Sequence[RoundRecord]) -> list[RoundNumbers]:
    """Return the numbers of every counted round."""
    found = []
    for record in records:
        if not record.counted:
            continue
        by_role = {
            role: {site: own.metrics for site, own in record.sites.items() if own.role == role} for role in ROLES
        }
        found.append(
            RoundNumbers(
                round=record.round,
                stage=record.stage,
                score=record.score,
                val_dice=weighted(state.participants, by_role["source"], "val_dice"),
                loss={role: weighted(state.participants, own, "loss") for role, own in by_role.items()},
                rolled_back=record.rolled_back,
                seconds=record.seconds,
            )
        )
    return found


def score_chart(study: Study, state: ServerState, found: Sequence[RoundNumbers]) -> Markup | None:
    """Return label-free score and validation Dice over the rounds, in percent, or None before the first of either."""
    score = tuple((float(r.round), 100 * r.score) for r in found if r.score is not None)
    dice = tuple((float(r.round), 100 * r.val_dice) for r in found if r.val_dice is not None)
    if not score and not dice:
        return None
    axis = axis_over([y for _, y in (*score, *dice)])
    curves = [
        Curve("Dice on validation patients of the labelled sites", "source", (dice,)),
        Curve("label-free score", "score", (score,)),
    ]
    return round_chart(
        bands(study),
        [curve for curve in curves if curve.values],
        axis,
        title="Label-free score and validation Dice over the rounds, in percent",
        released=state.released_round,
        # on both curves: a round is undone for either
        undone=[(r.round, 100 * x) for r in found if r.rolled_back for x in (r.score, r.val_dice) if x is not None],
    )


def baseline_chart(study: Study, found: Sequence[RoundNumbers]) -> Markup | None:
    """Return the mean loss over the rounds of the baseline's own run, or None before the first.

    Args:
        study: the baseline's. Nobody chooses a model by its rounds, so no labelled site measures one.
    """
    losses = [(r.stage, (float(r.round), loss)) for r in found if (loss := r.loss["source"]) is not None]
    if not losses:
        return None
    axis = axis_over([loss for _, (_, loss) in losses])
    name = "training loss, labelled sites"
    return round_chart(bands(study), [Curve(name, "baseline", _segments(losses))], axis, title=f"Baseline: {name}")


def loss_charts(study: Study, state: ServerState, records: Sequence[RoundRecord]) -> list[LossChart]:
    """Return one chart a role: every site's training loss, and their mean where there are several.

    Of many sites it shows the quartiles instead of each. Lines break between stages, since the loss of another task is
    another quantity.
    """
    counted = [record for record in records if record.counted]
    charts = []
    for role in ROLES:
        sites = [site for site, participant in state.participants.items() if participant.role == role]
        if len(sites) > MANY_SITES:
            curves = [
                Curve(words, f"{role} thin", _segments(_quantiles(role, counted, share)))
                for words, share in (
                    ("a quarter of the sites is below", 0.25),
                    ("a quarter of the sites is above", 0.75),
                )
            ]
        else:
            kind = f"{role} thin" if len(sites) > 1 else role
            curves = [Curve(site, kind, _segments(_losses(site, counted))) for site in sites]
        if len(sites) > 1:
            numbers = rounds(state, counted)
            means = [(r.stage, (float(r.round), loss)) for r in numbers if (loss := r.loss[role]) is not None]
            curves.append(Curve("mean weighted by patients", role, _segments(means)))
        curves = [curve for curve in curves if curve.values]
        if curves:
            axis = axis_over([value for curve in curves for value in curve.values])
            title = f"Training loss of the {role} sites over the rounds"
            charts.append(LossChart(role, len(sites), round_chart(bands(study), curves, axis, title=title)))
    return charts


def _losses(site: str, records: Sequence[RoundRecord]) -> list[tuple[str, Point]]:
    return [
        (record.stage, (float(record.round), record.sites[site].metrics["loss"]))
        for record in records
        if site in record.sites and "loss" in record.sites[site].metrics
    ]


def _quantiles(role: Role, records: Sequence[RoundRecord], share: float) -> list[tuple[str, Point]]:
    """Return the loss below which a share of a role's sites lies, for each round."""
    return [
        (record.stage, (float(record.round), float(np.quantile(losses, share))))
        for record in records
        if (losses := [s.metrics["loss"] for s in record.sites.values() if s.role == role and "loss" in s.metrics])
    ]


def _segments(points: Sequence[tuple[str, Point]]) -> tuple[tuple[Point, ...], ...]:
    """Return (stage, point) pairs as one segment a stage."""
    return tuple(tuple(point for _, point in group) for _, group in groupby(points, lambda pair: pair[0]))
