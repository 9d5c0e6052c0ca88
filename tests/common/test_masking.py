"""Masks: they cancel, hide, and no set of lists that a server may tell lays a smaller sum bare."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from common.errors import ContractError
from common.masking import Pair, add_mask, least_summed, sign, threshold

ONE, OTHER, THIRD = (X25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))
REQUEST, LATER = "a" * 64, "b" * 64


def pair(own: X25519PrivateKey, other: X25519PrivateKey, request: str = REQUEST) -> Pair:
    return Pair(own, other.public_key().public_bytes_raw(), request)


def bare(lists: Sequence[frozenset[int]], least: int) -> int:
    """Size of the smallest sum that a server learns which tells site i that the updates of `lists[i]` arrived.

    A mask of two sites is known once one of them was told that the other is missing. What masks that are not known
    hold together is learnt together or not at all, and needs each site's own mask: that is, `least` sites' shares.
    """
    sites = range(len(lists))
    known = {(i, j) for i in sites for j in sites if j not in lists[i]}
    own = [sum(i in lists[j] for j in sites) >= least for i in sites]
    together = {i: {i} for i in sites}
    for i, j in itertools.combinations(sites, 2):
        if (i, j) not in known and (j, i) not in known:
            union = together[i] | together[j]
            for each in union:
                together[each] = union
    return min((len(group) for group in together.values() if all(own[i] for i in group)), default=len(lists))


def told(site: int, sites: int, least: int) -> Iterable[frozenset[int]]:
    """Every list that a site accepts: itself in it, and enough others."""
    others = [i for i in range(sites) if i != site]
    for size in range(least, sites + 1):
        for chosen in itertools.combinations(others, size - 1):
            yield frozenset((site, *chosen))


@pytest.mark.parametrize("sites", [3, 4, 5])
def test_no_lists_of_a_lying_server_lay_bare_the_sum_of_fewer(sites: int) -> None:
    least = threshold(sites)
    every = itertools.product(*(list(told(site, sites, least)) for site in range(sites)))
    assert min(bare(lists, least) for lists in every) >= least_summed(sites) >= 3


def test_with_a_lower_threshold_a_lying_server_would_have_the_sum_of_two() -> None:
    every = itertools.product(*(list(told(site, 4, 3)) for site in range(4)))
    assert min(bare(lists, 3) for lists in every) == 2


@pytest.mark.parametrize("sites", range(3, 200))
def test_every_sum_is_of_three_at_least(sites: int) -> None:
    assert 3 <= least_summed(sites) <= threshold(sites) <= sites


def test_two_sites_agree_for_one_request_and_a_third_does_not() -> None:
    assert pair(ONE, OTHER).seed == pair(OTHER, ONE).seed
    assert len({pair(ONE, OTHER).seed, pair(ONE, OTHER, LATER).seed, pair(ONE, THIRD).seed}) == 3


def test_only_the_receiver_reads_a_share_and_only_of_its_sender_and_request() -> None:
    sealed = pair(ONE, OTHER).seal("one", b"s" * 32)
    assert pair(OTHER, ONE).open("one", sealed) == b"s" * 32
    for reader, sender in ((pair(THIRD, ONE), "one"), (pair(OTHER, ONE, LATER), "one"), (pair(OTHER, ONE), "other")):
        with pytest.raises(ContractError, match="bad-share"):
            reader.open(sender, sealed)


def test_a_key_that_agrees_with_everybody_is_none() -> None:
    with pytest.raises(ContractError, match="bad-mask-key"):
        Pair(ONE, bytes(32), REQUEST)


def test_masks_cancel_exactly_and_hide_what_they_cover() -> None:
    plain = {"b": np.arange(1000, dtype=np.uint64).reshape(10, 100), "a": np.zeros(7, np.uint64)}
    masked = {name: x.copy() for name, x in plain.items()}
    add_mask(masked, b"s" * 16, 1)
    assert abs(np.corrcoef(plain["b"].ravel(), masked["b"].astype(np.float64).ravel())[0, 1]) < 0.1
    ones = np.unpackbits(masked["b"].view(np.uint8)).mean()
    assert abs(ones - 0.5) < 0.01  # 64,000 fair bits: five standard deviations
    add_mask(masked, b"s" * 16, -1)
    assert all(np.array_equal(masked[name], plain[name]) for name in plain)


def test_of_two_sites_one_adds_and_the_other_subtracts() -> None:
    assert {sign("a", "b"), sign("b", "a")} == {1, -1}
