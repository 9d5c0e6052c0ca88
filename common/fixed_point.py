"""Updates as integers: they add up to the same sum whoever comes first.

By hand: Flower's strategies add up floats, whose sum depends on the order in which replies arrive.
"""

import numpy as np

from common.errors import ContractError

#: Fixed-point scale. float32 carries 24 bits, so an update of size 1 keeps more than it had.
SCALE = float(2**32)
#: |x| * SCALE * patients of the whole role must stay below 2^63, with room for rounding.
_LIMIT = 2.0**62
#: Values that are converted at a time: they and their copies stay in a core's cache, and memory holds no second update.
_BLOCK = 1 << 15


def check_range(x: np.ndarray, most_patients: int) -> None:
    """Check that the sum of a role's updates cannot overflow.

    Raises:
        ContractError: `absurd-norm`.
    """
    if x.size:
        check_room(max(float(x.max()), -float(x.min())), most_patients)


def check_room(largest: float, most_patients: int) -> None:
    """Check that the sum of a role's updates cannot overflow where none has a number larger than `largest`.

    A site asks it of the study's bound: a refusal that depended on its update would tell how large that is.

    Raises:
        ContractError: `absurd-norm`.
    """
    if largest * SCALE * most_patients >= _LIMIT:
        raise ContractError("absurd-norm", f"updates of up to {largest:.3g} are too large to be summed exactly")


def to_fixed(x: np.ndarray) -> np.ndarray:
    """Return `rint(x * 2^32)`, int64."""
    return np.rint(x.astype(np.float64) * SCALE).astype(np.int64)


def add_fixed(total: np.ndarray, x: np.ndarray, weight: int) -> None:
    """Add `to_fixed(x) * weight` to `total`, int64 of the same shape, contiguous, in place."""
    values, sums = x.reshape(-1), total.reshape(-1)
    for start in range(0, values.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        sums[block] += to_fixed(values[block]) * weight


def from_fixed(total: np.ndarray, weight: int) -> np.ndarray:
    """Return the mean that a sum of weighted fixed-point updates stands for, float64."""
    return total.astype(np.float64) / (SCALE * weight)
