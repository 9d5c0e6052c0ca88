"""The sentences that a hospital reads before it approves a study, the same on a terminal and on the desk's page."""

from collections.abc import Iterator, Mapping

from clients.governance.proposal import Budget, Proposal
from common.privacy import WEAK_EPSILON


def declared(proposal: Proposal) -> str:
    """Return what the site tells of itself."""
    tested = "takes part in the evaluation" if proposal.labelled_test else "has too few labelled test patients for it"
    return f"Your site declares {proposal.patients} training patients, fixed for the study, and {tested}."


def what_it_tells(proposal: Proposal) -> str:
    """Return what never leaves, and what that which leaves could still tell."""
    return (
        f"No image, label, file name or patient's name leaves. {_in_cohorts(proposal)}{_under_masks(proposal)}"
        f"{_of_single_patients(proposal.budget)}"
    )


def _of_single_patients(budget: Budget | None) -> str:
    what = "What the changes to the networks could tell about single patients is"
    if budget is not None and budget.cap <= WEAK_EPSILON:
        return f"{what} bounded by its differential privacy."
    why = "it has no differential privacy"
    if budget is not None:
        why = f"its differential privacy is capped at an epsilon of {budget.cap:g}, over {WEAK_EPSILON:g}"
    return (
        f"{what} not bounded in this study: {why}. A coordinator who sends networks made for it can rebuild images of "
        "your patients from such changes; the policy's bounds make that harder and do not rule it out. Approve only if "
        "you trust the coordinator as you would with the images, or ask for a study with differential privacy."
    )


def _in_cohorts(proposal: Proposal) -> str:
    if not proposal.metrics:
        return ""
    return (
        "A number over all patients of a split is taken over whole groups of at least as many as your policy asks for "
        "(min_patients), so that from study to study nobody comes or goes in it alone. "
    )


def _under_masks(proposal: Proposal) -> str:
    if not proposal.summed:
        return ""
    return (
        "The changes to the networks leave under masks that cancel in the sum: the coordinator, and whoever reads its "
        f"messages, learns the sum over at least {proposal.summed} {proposal.role} hospitals, and yours alone only if "
        "others of these help it. "
    )


def summed_with(proposal: Proposal, fingerprints: Mapping[str, str]) -> Iterator[str]:
    """Yield with which hospitals' updates this site's are summed under masks, by the fingerprints of their keys."""
    if not proposal.summed:
        return
    if not fingerprints:
        yield (
            "This study sums your changes under masks with those of other hospitals, but their keys are not given: "
            "whoever runs the server could invent them. Ask for the folder of all sites' signing keys, and give it "
            "with --site-keys."
        )
        return
    yield "Your changes are summed with these hospitals' only. Compare each fingerprint over the telephone:"
    yield from (f"  {name}  {fingerprint}" for name, fingerprint in sorted(fingerprints.items()))


def signature(fingerprint: str | None) -> str:
    """Return whose requests will be answered, by the fingerprint of the coordinator's key if there is one."""
    if fingerprint:
        return f"Requests must be signed by the coordinator's key {fingerprint}.\nCompare it over the telephone."
    return (
        "Requests need no signature: another hospital, or whoever stands between the coordinator and you, can make "
        "some.\nAsk for the coordinator's key; give it with --coordinator-key."
    )


def of_budget(budget: Budget) -> Iterator[str]:
    """Yield what a study spends of the privacy budget, and what that does not cover, a sentence or two each."""
    yield (
        f"Epsilon {budget.alone:.3f} for all rounds of this study, {budget.after:.3f} with the {budget.before:.3f} of "
        f"other rounds before, at delta {budget.settings.delta:g}. The cap is {budget.cap:g}"
        + (
            f": your site stops after {budget.rounds_in_cap} of {budget.rounds} training rounds."
            if budget.rounds_in_cap < budget.rounds
            else ", which all of its rounds keep."
        )
    )
    if budget.unbounded:
        yield (
            f"This site answered {budget.unbounded} study or studies without differential privacy. No epsilon bounds "
            "what all of its replies together tell about a patient; the above counts the noisy ones alone."
        )
    yield (
        "No number that is measured on your patients leaves while training, and your declared patient count is the "
        "study's public number, not yours. Not covered: when and how long your site answers, and that it takes part."
    )
    if budget.settings.evaluation == "outside":
        yield "Not covered either: the closing evaluation, whose numbers about your `test` patients have no noise."
