"""What a run shows, in plain words: the released model against the baseline, site by site."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from common.components import Role
from server.history import RoundRecord
from server.report.summary import MIN_SCORED_ROUNDS
from server.state import Participant

#: The predictor that is released: both branches under the infusion head.
RELEASED = "infusion"

#: Means of Dice in [0, 1] that differ by less are written alike, as percent with one digit.
SAME_DICE = 5e-4

Outcome = Literal["better", "worse", "no difference shown", "no baseline", "not validated"]


@dataclass(frozen=True)
class Conclusion:
    """What the evaluation says about the released model at one site.

    Attributes:
        dice: the released model's mean Dice in [0, 1], or None.
        difference: Dice of the released model minus the baseline's, in [-1, 1], with `interval`, its
            95 % bounds, paired by patient; None without a baseline or labels.
        reason: why nothing is validated here; empty where something is.
    """

    site: str
    role: Role
    outcome: Outcome
    dice: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""


def points(value: float) -> str:
    """Return a difference in [-1, 1] as signed percentage points: `+6.1`, `−0.8`."""
    return _signed(100 * value, 1)


def _signed(value: float, digits: int = 2) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def conclusions(
    participants: Mapping[str, Participant], summary: Mapping[str, Any], records: Sequence[RoundRecord]
) -> tuple[Conclusion, ...]:
    """Return one conclusion a site, in the order of the participants."""
    return tuple(_conclusion(site, participant, summary, records) for site, participant in participants.items())


def _conclusion(
    site: str, participant: Participant, summary: Mapping[str, Any], records: Sequence[RoundRecord]
) -> Conclusion:
    reached = summary["dice"].get(site, {}).get(RELEASED)
    if reached is None:
        return Conclusion(site, participant.role, "not validated", reason=_why_nothing(site, participant, records))
    difference = summary["difference_to_baseline"].get(site, {}).get(RELEASED)
    if difference is not None:
        low, high = difference["ci95"]
        outcome: Outcome = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
        return Conclusion(site, participant.role, outcome, reached["mean"], difference["mean"], (low, high))
    return Conclusion(site, participant.role, "no baseline", reached["mean"])


def _why_nothing(site: str, participant: Participant, records: Sequence[RoundRecord]) -> str:
    asked = [record.sites[site] for record in records if record.stage == "evaluate" and site in record.sites]
    if not participant.labelled_test:
        return "no labelled test patients"
    if not asked:
        return "no evaluation was asked for"
    if asked[-1].status != "ok":
        return f"its evaluation did not count: {asked[-1].status}"
    return "its policy lets no Dice be shown (too few test patients, or not allowed)"


def headline(sites: Sequence[Conclusion]) -> str:
    """Return one sentence on the unlabelled sites among `sites`."""
    targets = [conclusion for conclusion in sites if conclusion.role == "target"]
    compared = [conclusion for conclusion in targets if conclusion.difference is not None]
    if not targets:
        return "Not validated: the run has no unlabelled site."
    if not compared:
        reasons = dict.fromkeys(v.reason or "the run holds no baseline to compare with" for v in targets)
        return f"Not validated against a baseline: {'; '.join(reasons)}."
    if len(targets) == 1:
        return _one_site(compared[0])
    return f"Against the baseline, the released model on {len(targets)} unlabelled sites: {_counts(targets)}."


def _counts(sites: Sequence[Conclusion]) -> str:
    """Return how often each outcome was found, those that never were left out: `2 better, 1 worse`."""
    count = Counter(conclusion.outcome for conclusion in sites)
    return ", ".join(f"{count[outcome]} {outcome}" for outcome in get_args(Outcome) if count[outcome])


def _one_site(conclusion: Conclusion) -> str:
    assert conclusion.difference is not None
    assert conclusion.interval is not None
    low, high = conclusion.interval
    interval = f"95 % interval {points(low)} to {points(high)}"
    if conclusion.outcome == "no difference shown":
        return (
            f"On {conclusion.site}, whose training images have no labels, no difference between the released model and "
            f"the baseline is shown: {points(conclusion.difference)} Dice points, and the {interval} includes zero."
        )
    verb = "beats" if conclusion.outcome == "better" else "loses to"
    size = f"{abs(100 * conclusion.difference):.1f}"
    return (
        f"On {conclusion.site}, whose training images have no labels, the released model {verb} the baseline by "
        f"{size} Dice points ({interval})."
    )


def labelled_sentence(sites: Sequence[Conclusion]) -> str:
    """Return one sentence on the labelled sites among `sites`, or nothing where none is compared."""
    compared = [v for v in sites if v.role == "source" and v.difference is not None]
    if not compared:
        return ""
    if len(compared) == 1:
        (low, high), only = compared[0].interval or (0.0, 0.0), compared[0]
        return (
            f"On the labelled site {only.site} the difference is {points(only.difference or 0.0)} Dice points "
            f"({points(low)} to {points(high)})."
        )
    return f"On the {len(compared)} labelled sites with a comparison: {_counts(compared)}."


def average_sentence(summary: Mapping[str, Any], *, head_trained: bool, source_share: float = 0.5) -> str:
    """Return what the infusion is where nothing trained its head, or that it equals the average, else nothing."""
    pairs = [
        (own["average"]["mean"], own[RELEASED]["mean"])
        for own in summary["dice"].values()
        if {"average", RELEASED} <= own.keys()
    ]
    if not head_trained and source_share != 0.5:
        return (
            f"Infusion is {100 * source_share:g} % of the source branch and the rest of the target branch here, as the "
            "study says: no round before the released one trained the infusion head."
        )
    if not head_trained:
        return (
            "Infusion equals average here: no round before the released one trained the infusion head, and untrained "
            "it weighs both branches alike."
        )
    if pairs and all(abs(average - infused) < SAME_DICE for average, infused in pairs):
        return (
            "Infusion equals average here to a tenth of a Dice point at every site: the infusion head was trained and "
            "changed next to nothing."
        )
    return ""


def score_sentence(score: Mapping[str, Any] | None) -> str:
    """Return how the label-free score relates to Dice on validation patients, from the summary's part on it."""
    if score is None:
        return "How the label-free score relates to Dice is worked out when the run has finished."
    scored = len(score["rounds"])
    pairs = sum(entry["source_val_dice"] is not None for entry in score["rounds"])
    rho = score["rank_correlation_with_source_val_dice"]
    if not scored:
        return "No round has a label-free score: nothing was chosen by it."
    if rho is None:
        why = f"it needs {MIN_SCORED_ROUNDS}" if pairs < MIN_SCORED_ROUNDS else "one of them never changed"
        return f"The label-free score is not validated: {pairs} rounds have both it and a validation Dice, and {why}."
    text = (
        f"Over {pairs} rounds the label-free score and Dice on validation patients of the labelled sites have a "
        f"rank correlation of {_signed(rho)} (Spearman)."
    )
    if rho <= 0:
        return f"{text} The score did not rank these rounds as Dice does; at best it told a collapse from the rest."
    return f"{text} This is measured at the labelled sites; at the unlabelled ones it is an assumption."
