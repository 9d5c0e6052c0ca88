"""Whether a state folder still is what its ledger tells of.

Each file is on the disk before the line of the ledger that follows from it. So a folder that knows less than
its ledger has lost a file, or got one from an old backup: rounds would be answered twice, with the same
randomness, and what was spent would be spent again. Each line also has the hash of the accountant's file: one
that was changed by hand would tell another epsilon.
"""

from clients.governance.accountant import Accountant
from clients.governance.cohorts import REMEDY, Cohorts
from clients.governance.ledger import RENEW, read
from clients.governance.state import State
from common.errors import SiteStateError

_RESTORE = "it was deleted, or is from an old backup. Restore the whole folder from its latest backup. If there is"


def check_rollback(state: State, accountant: Accountant, cohorts: Cohorts) -> None:
    """Check accountant, cohorts and answered rounds against the ledger.

    Raises:
        SiteStateError: naming the file that knows less than the ledger, and what to do.
    """
    lines, charges, sorted_in, reached = 0, 0, 0, dict[str, tuple[int, int, bool]]()
    bound: list[str | None] = []  # of the last line that tells of an accountant: older ones do not
    for line in read(state.ledger):
        lines += 1
        sorted_in = max(sorted_in, line.get("cohorts") or 0)
        if "accountant" in line:
            bound = [line["accountant"]]
        if line["direction"] == "out":
            charges = max(charges, line.get("charges") or 0)
            if line["kind"] in ("done", "unmasked"):
                place = (line.get("start") or 0, line["round"], line["kind"] == "unmasked")
                reached[line["study"]] = max(place, reached.get(line["study"], place))
    if accountant.count and not lines:
        raise SiteStateError(
            f"{state.accountant} knows of {accountant.count} charges, and there is no ledger of what they were for: it "
            f"was deleted or moved. Bring {state.ledger} back. {RENEW}"
        )
    if accountant.count < charges:
        raise SiteStateError(
            f"{state.accountant} knows of {accountant.count} charges, the ledger of {charges}: {_RESTORE} none, "
            "nothing more may leave for these patients until your privacy officer has decided: `crossprobe ledger "
            "show` has the epsilon that was spent, and a new state folder would begin at 0."
        )
    if bound and not accountant.follows(bound[-1]):
        raise SiteStateError(
            f"{state.accountant} is not the file that the ledger's last line was written beside: it was changed by "
            "hand, or is from a backup. What was spent of the privacy budget is not known any more. Restore the whole "
            "folder from its latest backup; if there is none, nothing more may leave for these patients until your "
            "privacy officer has decided."
        )
    if cohorts.known < sorted_in:
        raise SiteStateError(
            f"{state.cohorts} knows of {cohorts.known} patients, the ledger of {sorted_in}: it was deleted, or is from "
            f"an old backup. {REMEDY}"
        )
    for study_hash, place in sorted(reached.items()):
        try:
            answered = state.answered(study_hash)
        except SiteStateError:
            continue  # a damaged record answers nothing
        if (answered.start, answered.round, bool(answered.survivors)) < place:
            raise SiteStateError(
                f"{state.folder / 'answered' / study_hash} ends with round {answered.round}, the ledger with round "
                f"{place[1]}: {_RESTORE} none, begin the study again, if the coordinator does: crossprobe site approve "
                "STUDY --restart; give it once more if this comes again."
            )
