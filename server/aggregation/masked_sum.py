"""The sum of a role's updates that travelled under masks: nobody, this server included, sees one alone.

The server's half of `common.masking`: add up what arrived, ask those sites for the keys to what did not cancel, take
that off, and what is left is what `exact_mean` would have summed, bit for bit.
"""

from collections.abc import Mapping

import numpy as np

from common.components import Tensors
from common.errors import ContractError
from common.masking import add_mask, sign, threshold
from common.messages import Masking, TaskReply, UnmaskReply, UnmaskRequest
from common.secret_sharing import combine


class MaskedSum:
    """One role's updates of one round.

    Args:
        masking: of the request.
        request: SHA-256 of the request.
    """

    def __init__(self, masking: Masking, request: str) -> None:
        self.masking, self.request = masking, request
        self.least = threshold(len(masking.keys))
        self._total: dict[str, np.ndarray] = {}
        self._shares: dict[str, Mapping[str, str]] = {}
        self._help: dict[str, UnmaskReply] = {}

    @property
    def arrived(self) -> list[str]:
        """Sites whose updates were added."""
        return sorted(self._shares)

    @property
    def missing(self) -> list[str]:
        """Sites that were asked and whose updates did not arrive."""
        return sorted(self.masking.keys.keys() - self._shares.keys())

    def add(self, site: str, updates: Mapping[str, np.ndarray], shares: Mapping[str, str]) -> None:
        """Add one site's masked updates, uint64, and keep the shares that it sealed for the others.

        Raises:
            ContractError: `bad-share` if it has not one for each site that was asked.
        """
        if shares.keys() != self.masking.keys.keys():
            raise ContractError("bad-share", f"expected {len(self.masking.keys)} sealed shares, found {len(shares)}")
        for name, x in updates.items():
            if name in self._total:
                self._total[name] += x
            else:
                self._total[name] = x.copy()
        self._shares[site] = shares

    def question(self, site: str, header: TaskReply) -> UnmaskRequest:
        """Return what a site is asked whose update arrived.

        Args:
            header: of any of these replies.
        """
        return UnmaskRequest(
            study=header.study,
            round=header.round,
            task=header.task,
            request=self.request,
            masking=self.masking,
            shares={sender: self._shares[sender][site] for sender in self.arrived},
        )

    def helped(self, site: str, reply: UnmaskReply) -> None:
        """Take a site's answer. Raises ContractError `bad-share` if it is not about these sites."""
        if sorted(reply.shares) != self.arrived or sorted(reply.seeds) != self.missing:
            raise ContractError("bad-share", "expected a share or a seed for each site that was asked")
        self._help[site] = reply

    def wanting(self) -> list[str]:
        """Return the sites whose help is still needed; none if the sum can be laid bare.

        Where an update is missing, each of the others knows a mask with that site which nobody else does.
        """
        without = [site for site in self.arrived if site not in self._help]
        return without if self.missing or len(self._help) < self.least else []

    def total(self) -> Tensors:
        """Return the sum, int64 as `exact_mean` has it.

        Raises:
            ContractError: `bad-share` if the shares of a site's key do not fit together.
        """
        places = {site: place for place, site in enumerate(sorted(self.masking.keys))}
        for site in self.arrived:
            shares = {places[helper]: bytes.fromhex(reply.shares[site]) for helper, reply in self._help.items()}
            own = combine(shares)
            if own is None:
                raise ContractError("bad-share", f"the shares of {site}'s mask do not fit together")
            add_mask(self._total, own, -1)
            for other in self.missing:
                add_mask(self._total, bytes.fromhex(self._help[site].seeds[other]), -sign(site, other))
        return {name: x.view(np.int64) for name, x in self._total.items()}
