"""The patient-weighted mean, exactly (FedAvg's weighting: McMahan et al. 2017, arXiv 1602.05629)."""

from collections.abc import Mapping

import numpy as np

from common.components import Tensors
from common.fixed_point import add_fixed, check_range, from_fixed


class ExactMean:
    """The patient-weighted sum of one role's updates, in int64: memory of one model, any order of arrival.

    Args:
        most_patients: of all sites of the role together.
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
            check_range(x, self.most_patients)
        for name, x in updates.items():
            if name not in self._sums:
                self._sums[name] = np.zeros(x.shape, np.int64)
            add_fixed(self._sums[name], x, patients)
        self.patients += patients

    def add_sum(self, total: Mapping[str, np.ndarray], patients: int) -> None:
        """Add what several sites' updates sum up to already, int64 as `add` makes it, with all their patients."""
        for name, fixed in total.items():
            self._sums[name] = self._sums[name] + fixed if name in self._sums else fixed
        self.patients += patients

    def mean(self) -> Tensors:
        """Return the patient-weighted mean update, float64."""
        return {name: from_fixed(value, self.patients) for name, value in self._sums.items()}
