"""The coordinate-wise trimmed mean (Yin et al. 2018, arXiv 1803.01498): a few sites cannot steer it.

Every site counts alike, whatever number of patients it declares, or a single one could declare its way past
the trimming.
"""

from collections.abc import Mapping

import numpy as np

from common.components import Tensors
from common.fixed_point import check_range, from_fixed, to_fixed

#: Share of the sites that is left out at each end of every value; with fewer than five sites none is.
TRIMMED = 0.2


class TrimmedMean:
    """One role's updates, kept until the round ends: memory of one model a site.

    Args:
        most_patients: of all sites of the role together.
    """

    def __init__(self, most_patients: int) -> None:
        self.most_patients = most_patients
        self._updates: dict[str, list[np.ndarray]] = {}
        self.patients = 0

    def add(self, updates: Mapping[str, np.ndarray], patients: int) -> None:
        """Add one site's updates, float32, new minus received. Raises ContractError `absurd-norm`."""
        for x in updates.values():
            check_range(x, self.most_patients)
        for name, x in updates.items():
            self._updates.setdefault(name, []).append(to_fixed(x))
        self.patients += patients

    def mean(self) -> Tensors:
        """Return the mean of what is left of each value after its extremes are cut off, float64."""
        means = {}
        for name, updates in self._updates.items():
            cut = int(TRIMMED * len(updates))
            kept = np.sort(np.stack(updates), axis=0)[cut : len(updates) - cut]
            means[name] = from_fixed(kept.sum(axis=0), len(kept))
        return means
