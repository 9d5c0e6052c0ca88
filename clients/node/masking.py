"""A site's half of secure aggregation: its update under masks, and once a round its help to lay bare the sum.

See `common.masking` for the protocol and what it is worth.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from common.components import Tensors
from common.errors import ContractError
from common.fixed_point import to_fixed
from common.masking import LEAST_SITES, Pair, add_mask, least_summed, sign, threshold
from common.messages import Masking, MaskKey, UnmaskRequest
from common.secret_sharing import SECRET_BYTES, split
from common.seeds import derive
from common.signing import certify, check_certified


@dataclass(frozen=True)
class Masker:
    """One site's keys and masks in one study.

    Attributes:
        secret: the site's, of this start of the study.
        signing_key: by which the others know its mask key.
        known: the other sites' signing keys by name, as approved; None (simulations): whoever the server names.
    """

    site: str
    study_hash: str
    secret: bytes
    signing_key: Ed25519PrivateKey
    known: Mapping[str, Ed25519PublicKey] | None = None

    @property
    def _own(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(derive(self.secret, "masks", self.study_hash))

    def mask_key(self) -> MaskKey:
        """Return the public key that the other sites agree with, signed."""
        key = self._own.public_key().public_bytes_raw()
        return MaskKey(key=key.hex(), signature=certify(self.site, self.study_hash, key, self.signing_key).hex())

    def check(self, masking: Masking) -> int:
        """Check among whom an update would be summed, and return how many are in any sum that can be learnt.

        Raises:
            ContractError: `too-few-summed`, `bad-mask-key`, `unknown-site` or `bad-signature`.
        """
        if len(masking.keys) < LEAST_SITES:
            raise ContractError("too-few-summed", f"{len(masking.keys)} sites are asked, {LEAST_SITES} are needed")
        if masking.keys.get(self.site) != self.mask_key():
            raise ContractError("bad-mask-key", "the request names another mask key for this site than its own")
        for site, key in masking.keys.items():
            if self.known is None or site == self.site:
                continue
            if site not in self.known:
                raise ContractError("unknown-site", "the request names a site whose key was not approved here")
            check_certified(site, self.study_hash, *_bytes(key), self.known[site])
        self._pairs(masking, "")  # a key to agree with nobody on: said before an image is looked at or epsilon spent
        return least_summed(len(masking.keys))

    def masked(self, updates: Tensors, patients: int, masking: Masking, request: str) -> tuple[Tensors, dict[str, str]]:
        """Return `rint(update * 2^32) * patients` under masks, uint64, and the shares for the sites.

        Args:
            updates: float32, new minus received.
            patients: as the site declared them.
            masking: of which `check` has nothing to say.
            request: SHA-256 of the request; every request has masks of its own.
        """
        masked = {name: np.asarray(to_fixed(x) * patients).view(np.uint64) for name, x in updates.items()}
        pairs = self._pairs(masking, request)
        for other, pair in pairs.items():
            if other != self.site:
                add_mask(masked, pair.seed, sign(self.site, other))
        own = derive(self.secret, "own mask", request)[:SECRET_BYTES]
        add_mask(masked, own, 1)
        shares = split(own, len(pairs), threshold(len(pairs)), derive(self.secret, "shares", request))
        sealed = zip(pairs.items(), shares, strict=True)
        return masked, {site: pair.seal(self.site, share).hex() for (site, pair), share in sealed}

    def reveal(self, header: UnmaskRequest) -> tuple[dict[str, str], dict[str, str]]:
        """Return the shares of those whose updates arrived, and the seeds with those whose did not.

        Whoever calls it sees to it that a round has one such answer.

        Raises:
            ContractError: `too-few-summed` if too few arrived or this site's own did not, `unknown-site`,
                `bad-share`, or as `check` does.
        """
        self.check(header.masking)
        arrived, least = header.shares.keys(), threshold(len(header.masking.keys))
        if arrived - header.masking.keys.keys():
            raise ContractError("unknown-site", "the request names a site that was not asked")
        if len(arrived) < least or self.site not in arrived:
            raise ContractError("too-few-summed", f"{len(arrived)} updates are said to have come, {least} are needed")
        pairs = self._pairs(header.masking, header.request)
        shares = {site: pairs[site].open(site, bytes.fromhex(share)).hex() for site, share in header.shares.items()}
        return shares, {site: pair.seed.hex() for site, pair in pairs.items() if site not in arrived}

    def _pairs(self, masking: Masking, request: str) -> dict[str, Pair]:
        """Return what this site has in common with each site, itself included, in the order of the names."""
        own = self._own
        return {site: Pair(own, bytes.fromhex(key.key), request) for site, key in sorted(masking.keys.items())}


def _bytes(key: MaskKey) -> tuple[bytes, bytes]:
    return bytes.fromhex(key.key), bytes.fromhex(key.signature)
