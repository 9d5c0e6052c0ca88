"""One file a task: `clients/learning/<task>.py` has `run(context) -> metrics`. Torch comes with the task.

A training task has its `objective(context, seen) -> loss_of` apart, which `run` hands to the optimizer.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clients.learning.training import LossOf, Metrics, Seen, TaskContext


def runner(task: str) -> "Callable[[TaskContext], Metrics]":
    """Return the `run` function of `clients/learning/<task>.py`."""
    run: Callable[[TaskContext], Metrics] = import_module(f"clients.learning.{task}").run
    return run


def objective_of(task: str) -> "Callable[[TaskContext, Seen], LossOf]":
    """Return the `objective` function of a training task, for an optimizer loop other than the site's own."""
    objective: Callable[[TaskContext, Seen], LossOf] = import_module(f"clients.learning.{task}").objective
    return objective
