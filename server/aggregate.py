"""Exact, order-free aggregation of updates: integers add up to the same sum whoever comes first.

By hand: Flower's strategies add up floats, whose sum depends on the order in which replies arrive.
"""

from collections.abc import Mapping

import numpy as np

from common.contract import Role, Tensors, component_of
from common.errors import ContractError
from common.study import Stage

#: Fixed-point scale. float32 carries 24 bits, so an update of size 1 keeps more than it had.
SCALE = float(2**32)
#: |x| * SCALE * patients of the whole role must stay below 2^63, with room for rounding.
_LIMIT = 2.0**62


class RoleSum:
    """The patient-weighted sum of one role's updates, in int64: memory of one model, any order of arrival.

    Args:
        most_patients: of all sites of the role together. Bounding every update by it, rather than by
            what has arrived, keeps the sum from overflowing and the verdict free of the order.
    """

    def __init__(self, most_patients: int) -> None:
        self.most_patients = most_patients
        self._sums: dict[str, np.ndarray] = {}
        self.patients = 0

    def add(self, updates: Mapping[str, np.ndarray], patients: int) -> None:
        """Add one site's updates: `rint(x * 2^32) * patients`.

        Args:
            updates: float32 tensors, new minus received.
            patients: the site's declared training patients, > 0.

        Raises:
            ContractError: `absurd-norm` if a value could overflow the sum.
        """
        for x in updates.values():
            if x.size and float(np.abs(x).max()) * SCALE * self.most_patients >= _LIMIT:
                raise ContractError("absurd-norm", "an update is too large to be summed exactly")
        for name, x in updates.items():
            fixed = np.rint(x.astype(np.float64) * SCALE).astype(np.int64) * patients
            self._sums[name] = self._sums[name] + fixed if name in self._sums else fixed
        self.patients += patients

    def mean(self) -> Tensors:
        """Return the patient-weighted mean update, float64."""
        return {name: value.astype(np.float64) / (SCALE * self.patients) for name, value in self._sums.items()}


def apply_updates(old: Mapping[str, np.ndarray], sums: Mapping[Role, RoleSum], stage: Stage) -> Tensors:
    """Return `old + sum over roles of rho_role * mean update of the role`, float32.

    Args:
        old: all tensors of the server.
        sums: role -> its summed updates; a role without replies is left out and moves nothing.
        stage: gives rho for each component and role.
    """
    change: dict[str, np.ndarray] = {}
    for role in sorted(
        role for role in sums if sums[role].patients
    ):  # a fixed order: the float64 additions below are not associative
        for name, mean in sums[role].mean().items():
            step = stage.rho(component_of(name), role) * mean
            change[name] = change[name] + step if name in change else step
    return {
        name: (x.astype(np.float64) + change[name]).astype(np.float32) if name in change else x
        for name, x in old.items()
    }
