"""A site's refusals: for each code the fixed sentence that may leave. Torch-free."""

from common.messages import Refusal

#: A private round that was paid for and failed, however it did; it is closed.
ROUND_SPENT = "round-spent"
#: What a coordinator reads; the details stay in the site's log.
SENTENCES = {
    "not-approved": "this site has not approved the study; its privacy officer can, with `crossprobe site approve`",
    "old-round": "this site has already answered a later round; to start the study over, see `site approve --restart`",
    "round-answered": "this site has already answered this round, to another request; see `site approve --restart`",
    "old-run": "this site has started the study over in the middle of that run; stop it, and go on or start anew",
    ROUND_SPENT: "the round's share of the privacy budget is spent, and no update came of it; the round is closed",
    "privacy-budget-spent": "the site's privacy budget is spent: another round would go over its epsilon cap",
    "busy": "the site is still at work on another request; ask again later",
    "too-many-messages": "too many messages that bring nothing new came to this site; ask again in a minute",
    "cancelled": "the task was stopped: whoever asked for it is gone, or the site is shutting down",
    "task-failed": "the task failed at the site; see the site's log",
    "site-error": "the site's data do not fit the study; see its log",
    "ledger-unwritable": "the site cannot write its ledger, so nothing leaves; see the site's log",
    "state-failed": "the site cannot read or write its state, so nothing leaves; see the site's log",
    "not-signed": "this site takes signed requests only, since its approval names the coordinator's key",
    "bad-signature": "the request is not signed by the key that this site's approval names",
    "other-sites": "the update was masked for a sum with other sites than this question names",
    "other-survivors": "this site helped to unmask this round, with other sites; it does so with the same ones only",
    "unknown-site": "the request names a site whose key this site's approval does not know",
    "no-worker": "the site's app does not know its worker: set `socket` in the node's configuration",
    "worker-unreachable": "the site's worker is down or restarting; its data manager finds more in its log",
    "worker-timeout": "the site's worker did not finish before the round's deadline",
    "client-app-failed": "the site's app failed; see the site's log",
}
_CONTRACT = "the request breaks the contract; see the site's log"
_POLICY = "the site's policy does not allow this; its privacy officer can say why"


def refusal(code: str, *, ledger_head: str | None = None) -> Refusal:
    """Return the refusal of a code with its fixed sentence."""
    by_kind = _POLICY if code.startswith(("policy-", "privacy-")) else _CONTRACT
    return Refusal(code=code, message=SENTENCES.get(code, by_kind), ledger_head=ledger_head)
