"""A new ledger where no right one can be had any more: the old one is kept, and the new one says what it follows."""

from datetime import UTC, datetime
from pathlib import Path

from clients.governance.accountant import Accountant
from clients.governance.ledger import Ledger, entry
from clients.governance.state import State
from common.errors import SiteStateError


def renew(state: State) -> Path | None:
    """Put the ledger aside and begin a new one; return where the old one is now, or None if there was none.

    The first line of the new one has the SHA-256 of the old file and of the accountant's: nothing that was spent is
    forgotten, and whoever compares heads sees that the ledger is another.

    Raises:
        SiteStateError: if a worker uses the folder, the accountant is damaged, or nothing can be written.
    """
    with state.locked():
        accountant, aside = Accountant(state.accountant), None
        old = b""
        try:
            if state.ledger.exists():
                old = state.ledger.read_bytes()
                aside = state.ledger.with_name(f"ledger-until-{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl")
                state.ledger.rename(aside)
        except OSError as error:
            raise SiteStateError(f"cannot put {state.ledger} aside: {error.strerror}. Nothing was changed.") from None
        line = entry("in", old, charges=accountant.count) | {"kind": "renewed", "accountant": accountant.sha256}
        Ledger(state.ledger).append(line)
    return aside
