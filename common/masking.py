"""Secure aggregation: a site's update travels under masks that cancel in the sum of a role's sites. Torch-free.

After Bonawitz et al. 2017 (doi:10.1145/3133956.3133982), for a few sites that are known by name. Updates are integers
mod 2^64 already (`common.fixed_point`), so masks cancel exactly, and the sum is the plain one bit for bit.

    site i sends   y_i = update_i + PRG(b_i) + sum over j > i of PRG(s_ij) - sum over j < i of PRG(s_ij)      (mod 2^64)
    and            a share of b_i for each site, under a key that only these two have

s_ij comes from a key agreement of both sites (X25519) and from the hash of the request, so that every request has masks
of its own, and sites that were sent different requests never cancel. The server then names those that sent; each of
them answers once, with its shares of their b and with its s of those that did not: never both of one site. Among whom a
sum is, its request says, and the site answers for no other list than the one that it masked its update for.

Sites do not compare the lists of those that sent. A server that tells them different ones gains nothing, since the
threshold t keeps every sum that can be laid bare at `least_summed` sites. Let S be such a set and i in it. Of the t
sites that must give their share of b_i, at least t - |S| are outside; none of these gave its s with i, so i itself must
have, and i's list lacks t - |S| sites. But a list has at least t: n - (t - |S|) >= t, and so |S| >= 2 t - n. Each site
that conspires with the server takes one off.
"""

from collections.abc import Mapping

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import ContractError
from common.secret_sharing import SECRET_BYTES

#: A sum of fewer is its parts: two sites can each subtract their own.
LEAST_SITES = 3


def threshold(sites: int) -> int:
    """Return how many of a role's sites must have sent their updates, and must help to lay the sum bare."""
    return max(2 * sites // 3 + 1, (sites + LEAST_SITES + 1) // 2)


def least_summed(sites: int) -> int:
    """Return how many updates at least are in any sum that a server can learn, whatever it does."""
    return 2 * threshold(sites) - sites


class Pair:
    """What two sites have in common for one request, and nobody else.

    Args:
        own: a site's private key of this study.
        other: the other's public one, 32 bytes.
        request: SHA-256 of the request, in hex.

    Raises:
        ContractError: `bad-mask-key` if `other` is no key to agree with.
    """

    def __init__(self, own: X25519PrivateKey, other: bytes, request: str) -> None:
        try:
            self._agreed = own.exchange(X25519PublicKey.from_public_bytes(other))
        except ValueError:
            raise ContractError("bad-mask-key", "a site's mask key is none to agree with") from None
        self._request = request

    @property
    def seed(self) -> bytes:
        """The seed of their mask, 16 bytes."""
        return self._derived("mask")

    def seal(self, sender: str, share: bytes) -> bytes:
        """Return a share as only the other one can read it.

        A share follows from its request and the site's secret, so that the same key never meets two of them.
        """
        return AESGCM(self._derived(f"share of {sender}")).encrypt(bytes(12), share, None)

    def open(self, sender: str, sealed: bytes) -> bytes:
        """Return a share that the sender sealed. Raises ContractError `bad-share`."""
        try:
            return AESGCM(self._derived(f"share of {sender}")).decrypt(bytes(12), sealed, None)
        except (InvalidTag, ValueError):
            raise ContractError("bad-share", "a share is not one that a site sealed for this request") from None

    def _derived(self, use: str) -> bytes:
        info = f"crossprobe {use} {self._request}".encode()
        return HKDF(hashes.SHA256(), length=SECRET_BYTES, salt=None, info=info).derive(self._agreed)


def check_agreeable(key: bytes) -> None:
    """Check that a mask key is one to agree with. Raises ContractError `bad-mask-key`."""
    Pair(X25519PrivateKey.generate(), key, "")


def add_mask(tensors: Mapping[str, np.ndarray], seed: bytes, sign: int) -> None:
    """Add the mask of a seed to uint64 tensors in place, or with `sign` -1 take it off.

    The stream is AES-128 in counter mode; each seed serves once, in the order of the tensors' names.
    """
    stream = Cipher(AES(seed), CTR(bytes(16))).encryptor()
    for name in sorted(tensors):
        tensor = tensors[name]
        mask = np.frombuffer(stream.update(bytes(8 * tensor.size)), "<u8").reshape(tensor.shape)
        (np.add if sign > 0 else np.subtract)(tensor, mask, out=tensor)


def sign(site: str, other: str) -> int:
    """Return whether `site` adds (1) or subtracts (-1) its mask with `other`."""
    return 1 if site < other else -1
