"""How the updates of one role's sites become one: a rule a module, named by the stage's `aggregator`.

To add a rule, write its module with an `Aggregator`, and name it in `RULES` and in `common.stage.Stage`.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from common.components import Tensors
from server.aggregation.exact_mean import ExactMean
from server.aggregation.trimmed_mean import TrimmedMean


class Aggregator(Protocol):
    """Takes a role's updates one by one, in any order of arrival, and gives the same bits for each order."""

    #: Patients of the sites that were added.
    patients: int

    def add(self, updates: Mapping[str, np.ndarray], patients: int) -> None:
        """Add a site's updates. Raises ContractError `absurd-norm`, and is then as it was before."""

    def mean(self) -> Tensors:
        """Return the role's update, float64."""


RULES: dict[str, Callable[[int], Aggregator]] = {"exact_mean": ExactMean, "trimmed_mean": TrimmedMean}


def aggregator(rule: str, most_patients: int) -> Aggregator:
    """Return a fresh aggregator.

    Args:
        rule: a name among `RULES`.
        most_patients: of all sites of the role together. Bounding every update by it, rather than by
            what has arrived, keeps the sums from overflowing and the verdict free of the order.
    """
    return RULES[rule](most_patients)
