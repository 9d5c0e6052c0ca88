"""One file a task: `clients/tasks/<task>.py` has `run(context) -> metrics`. Torch comes with the task."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clients.training import Metrics, TaskContext


def runner(task: str) -> "Callable[[TaskContext], Metrics]":
    """Return the `run` function of `clients/tasks/<task>.py`."""
    run: Callable[[TaskContext], Metrics] = import_module(f"clients.tasks.{task}").run
    return run
