"""What differs between two studies as a hospital sees them: the rows of the approval's page, by a key each."""

from dataclasses import dataclass
from math import prod

from clients.governance.proposal import Proposal

#: In the key of a number that leaves.
NUMBERS = "/numbers/"


@dataclass(frozen=True)
class Fact:
    """One thing that a hospital reads of a study: its words and its value."""

    words: str
    value: str


@dataclass(frozen=True)
class Change:
    """A fact that is another than before; an empty value for one that is not there.

    Attributes:
        number: whether it is about a number that leaves; an evaluation has about 150.
    """

    words: str
    before: str
    now: str
    number: bool


def facts(proposal: Proposal) -> dict[str, Fact]:
    """Return what a study does and lets leave, by the keys that the page marks its rows with."""
    found = {
        "rounds": Fact("rounds in all", str(proposal.rounds)),
        "patients": Fact("training patients declared", str(proposal.patients)),
        "evaluation": Fact("takes part in the evaluation", "yes" if proposal.labelled_test else "no"),
        "privacy": Fact("differential privacy", _privacy(proposal)),
    }
    for role, least in proposal.quorum.items():
        found[f"quorum/{role}"] = Fact(f"least {role} hospitals behind an aggregate", str(least))
    for stage in proposal.stages:
        name = stage.stage
        found[f"{name}/rounds"] = Fact(f"{name}: rounds", str(stage.rounds))
        found[f"{name}/task"] = Fact(f"{name}: task", stage.task)
        found[f"{name}/steps"] = Fact(f"{name}: steps a round", f"{stage.steps:,}" if stage.steps else "none")
        found[f"{name}/sends"] = Fact(f"{name}: changes that leave", ", ".join(stage.sends) or "none")
        for setting in stage.settings:
            found[f"{name}/{setting.key}"] = Fact(f"{name}: {setting.words}", f"{setting.value:g}")
        for metric in stage.metrics:
            found[f"{name}{NUMBERS}{metric}"] = Fact(f"{name}: the number {metric}", "leaves")
    for component, shapes in proposal.tensors.items():
        found[f"network/{component}"] = Fact(f"{component}: numbers in it", f"{sum(map(prod, shapes.values())):,}")
    return found


def changes(before: Proposal, now: Proposal) -> dict[str, Change]:
    """Return what differs, by the facts' keys or the name of a stage that is new or gone, in the order of `now`."""
    old, new = facts(before), facts(now)
    stages, were = ({stage.stage for stage in side.stages} for side in (now, before))
    found = {name: Change(f"stage {name}", "part of it", "", False) for name in sorted(were - stages)}
    found |= {name: Change(f"stage {name}", "", "part of it", False) for name in sorted(stages - were)}
    for key in (*new, *(key for key in old if key not in new)):
        was, is_ = (side[key].value if key in side else "" for side in (old, new))
        # A whole stage that is new or gone is one change, not one for each of its rows.
        if was != is_ and key.partition("/")[0] not in stages ^ were:
            found[key] = Change((new.get(key) or old[key]).words, was, is_, NUMBERS in key)
    return found


def _privacy(proposal: Proposal) -> str:
    if proposal.budget is None:
        return "none"
    settings = proposal.budget.settings
    return (
        f"noise {settings.noise_multiplier:g}, clip {settings.max_gradient_norm:g}, delta {settings.delta:g}, cap "
        f"{settings.epsilon_cap:g}, {settings.nominal_patients} nominal patients, evaluation {settings.evaluation}"
    )
