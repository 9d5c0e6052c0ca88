"""A secret in shares, of which so many give it back and fewer tell nothing (Shamir 1979, doi:10.1145/359168.359176).

By hand, a polynomial over a prime field in Python's integers: PyCryptodome's works in GF(2^128) bit by bit and anew for
each secret, while here one set of Lagrange's coefficients serves all secrets of a round.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from common.seeds import derive

#: 2^255 - 19: the largest prime below the 32 bytes of a share.
PRIME = 2**255 - 19
#: Bytes of a secret (128 bits, as strong as the rest) and of a share.
SECRET_BYTES, SHARE_BYTES = 16, 32


def split(secret: bytes, holders: int, threshold: int, key: bytes) -> list[bytes]:
    """Return a share for each holder, in order, of 32 bytes.

    Args:
        secret: 16 bytes.
        threshold: how many shares give the secret back.
        key: 32 secret bytes that nobody else has, from which the polynomial is derived; another for every secret.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= holders:
        raise ValueError(f"expected {SECRET_BYTES} bytes and a threshold of 1 to {holders}")
    polynomial = [int.from_bytes(derive(key, "coefficient", power)) % PRIME for power in range(threshold - 1, 0, -1)]
    polynomial.append(int.from_bytes(secret))
    return [_value(polynomial, x).to_bytes(SHARE_BYTES) for x in range(1, holders + 1)]


def combine(shares: Mapping[int, bytes]) -> bytes | None:
    """Return the secret that shares stand for, or None where they stand for none: one of them is wrong.

    Args:
        shares: holder, counted from 0 as `split` orders them, -> share. At least the threshold; with fewer, or with
            wrong ones, what comes out has nothing to do with the secret.
    """
    holders = sorted(shares)
    weights = _at_zero(tuple(x + 1 for x in holders))
    total = sum(w * int.from_bytes(shares[x]) for w, x in zip(weights, holders, strict=True)) % PRIME
    return total.to_bytes(SECRET_BYTES) if total < 2 ** (8 * SECRET_BYTES) else None


def _value(polynomial: Sequence[int], x: int) -> int:
    """Return a polynomial at x, by Horner; the highest power first."""
    value = 0
    for coefficient in polynomial:
        value = (value * x + coefficient) % PRIME
    return value


@lru_cache(maxsize=4)
def _at_zero(xs: tuple[int, ...]) -> list[int]:
    """Return what each value at `xs` weighs in the polynomial's value at 0 (Lagrange)."""
    weights = []
    for x in xs:
        above, below = 1, 1
        for other in xs:
            if other != x:
                above, below = above * other % PRIME, below * (other - x) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights
