"""What may travel between server and site, and nothing else: tensors and numbers, checked at both ends. Torch-free.

Messages are in `common.messages`, components in `common.components`, the numbers of each task in `common.tasks`.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from common.components import Shapes
from common.errors import ContractError
from common.tasks import TASKS

#: Beyond the ends of a number's range: float32 sums of a share of 1 may be 1.0000001, of a loss of 0 be -1e-8.
ROUNDING = 1e-6
#: Bound on the L2 norm of a model that is taken in: a trained one has 50 to 100.
MAX_MODEL_NORM = 1e5


def check_tensors(tensors: Mapping[str, np.ndarray], shapes: Shapes, *, max_norm: float) -> None:
    """Check tensors against what the contract expects: exactly these names, shapes, float32, finite.

    Args:
        tensors: as received.
        shapes: expected shape by name.
        max_norm: largest L2 norm over all tensors together. It also bounds every value, which the
            exact integer aggregation needs.

    Raises:
        ContractError: `unknown-tensor`, `missing-tensor`, `wrong-dtype`, `wrong-shape`, `not-finite`
            or `absurd-norm`, naming the first tensor and how many more there are.
    """
    _check_form(tensors, shapes, np.dtype(np.float32))
    _refuse(
        "not-finite",
        [n for n, x in tensors.items() if not np.isfinite(x).all()],
        "holds NaN or infinity",
    )
    check_norm(tensors, max_norm)


def check_norm(tensors: Mapping[str, np.ndarray], max_norm: float) -> None:
    """Raises ContractError `absurd-norm` if the L2 norm over all tensors together is larger than `max_norm`."""
    norm = float(np.sqrt(sum(float(np.square(x, dtype=np.float64).sum()) for x in tensors.values())))
    if not norm <= max_norm:
        raise ContractError("absurd-norm", f"L2 norm {norm:.3g} is over the study's bound {max_norm:.3g}")


def check_masked(tensors: Mapping[str, np.ndarray], shapes: Shapes) -> None:
    """Check updates under masks: exactly these names and shapes, uint64. More cannot be seen of them.

    Raises:
        ContractError: as `check_tensors`, but for `not-finite` and `absurd-norm`.
    """
    _check_form(tensors, shapes, np.dtype(np.uint64))


def _check_form(tensors: Mapping[str, np.ndarray], shapes: Shapes, dtype: np.dtype) -> None:
    _refuse("unknown-tensor", sorted(tensors.keys() - shapes.keys()), "not part of this task")
    _refuse("missing-tensor", sorted(shapes.keys() - tensors.keys()), "expected, not found")
    _refuse("wrong-dtype", [n for n, x in tensors.items() if x.dtype != dtype], f"expected {dtype}")
    wrong = [n for n, x in tensors.items() if x.shape != tuple(shapes[n])]
    _refuse("wrong-shape", wrong, "its shape is not the study's")


def _refuse(code: str, names: list[str], text: str) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        # A received name could carry anything: only a plain one is repeated.
        shown = names[0] if re.fullmatch(r"[\w./]{1,120}", names[0]) else "a tensor"
        raise ContractError(code, f"{shown}{more}: {text}")


def check_metrics(task: str, metrics: Mapping[str, float]) -> None:
    """Check that a task sends only finite numbers that it declares, each within its range.

    Raises:
        ContractError: `unknown-metric`, `not-finite` or `out-of-range`.
    """
    declared = TASKS[task].metrics
    unknown = metrics.keys() - declared.keys()
    if unknown:
        raise ContractError("unknown-metric", f"{len(unknown)} metric(s) that `{task}` may not send")
    if not all(math.isfinite(value) for value in metrics.values()):
        raise ContractError("not-finite", "a metric is NaN or infinite")
    for name, value in sorted(metrics.items()):
        low, high = declared[name].low, declared[name].high
        if not low - ROUNDING <= value <= high + ROUNDING:
            raise ContractError("out-of-range", f"{name}: expected {low:g} to {high:g}, found {value:.6g}")
