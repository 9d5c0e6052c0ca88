"""Shamir's shares: enough of them give the secret back, whichever, and one fewer gives something else."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.secret_sharing import PRIME, SECRET_BYTES, SHARE_BYTES, combine, split

SECRETS = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)


@given(secret=SECRETS, key=st.binary(min_size=32, max_size=32), holders=st.integers(1, 7), data=st.data())
def test_enough_shares_give_the_secret_back_whichever_they_are(
    secret: bytes, key: bytes, holders: int, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, holders))
    shares = split(secret, holders, threshold, key)
    assert {len(share) for share in shares} == {SHARE_BYTES}
    for places in itertools.combinations(range(holders), threshold):
        assert combine({place: shares[place] for place in places}) == secret
    assert combine(dict(enumerate(shares))) == secret


@given(secret=SECRETS)
def test_one_share_fewer_gives_something_else(secret: bytes) -> None:
    shares = split(secret, 5, 4, b"k" * 32)
    for places in itertools.combinations(range(5), 3):
        assert combine({place: shares[place] for place in places}) != secret


def test_with_one_share_fewer_every_secret_is_possible() -> None:
    # Two polynomials of degree 1 that meet in the known share and have other secrets: it excludes neither.
    one, other = (split(secret * SECRET_BYTES, 2, 2, b"k" * 32) for secret in (b"a", b"b"))
    shift = int.from_bytes(one[0]) - int.from_bytes(other[0])
    moved = ((int.from_bytes(other[1]) + 2 * shift) % PRIME).to_bytes(SHARE_BYTES)
    assert combine({0: one[0], 1: one[1]}) == b"a" * SECRET_BYTES
    assert combine({0: one[0], 1: moved}) == b"b" * SECRET_BYTES


def test_a_wrong_share_is_noticed() -> None:
    shares = dict(enumerate(split(b"s" * SECRET_BYTES, 4, 3, b"k" * 32)))
    wrong = bytes([shares[1][0] ^ 1]) + shares[1][1:]
    assert combine(shares | {1: wrong}) is None


@pytest.mark.parametrize(("secret", "holders", "threshold"), [(b"short", 3, 2), (b"s" * 16, 3, 4), (b"s" * 16, 3, 0)])
def test_what_cannot_be_shared(secret: bytes, holders: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="threshold of 1 to"):
        split(secret, holders, threshold, b"k" * 32)
