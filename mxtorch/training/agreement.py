"""Calls that several processes make together: all of them with the same arguments, or none of them goes on."""

from __future__ import annotations

import datetime
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from mxtorch import schedules
from mxtorch._checks import length
from mxtorch.data.sharding import batch_size_of_all

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# The arguments that hold batches: what is compared of them is how many there are, and of which size.
_DATA = ("data", "train_data", "val_data")
# Only the main process has these callbacks.
_REPORTERS = ("ProgressBar", "TensorBoard")


def on_all_processes(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorates a method of the trainer that all processes call together: an error on one process ends the others."""

    @functools.wraps(method)
    def call(*arguments: Parameters.args, **named_arguments: Parameters.kwargs) -> Result:
        trainer: Any = arguments[0]
        with trainer.engine.together():
            return method(*arguments, **named_arguments)

    return call


def alike_on_all_processes(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """As `on_all_processes`, for a method whose arguments must be the same on all processes.

    Before the method is called, its arguments and the settings of the trainer are compared. If they differ, all
    processes raise the ValueError of `Engine.check_same`.
    """

    @functools.wraps(method)
    def call(*arguments: Parameters.args, **named_arguments: Parameters.kwargs) -> Result:
        trainer: Any = arguments[0]
        with trainer.engine.together():
            if trainer.engine.world_size > 1:
                bound = inspect.signature(method).bind(*arguments, **named_arguments)
                bound.apply_defaults()
                _, *given = bound.arguments.items()
                trainer.engine.check_same(method.__name__, _facts(trainer, dict(given)))
            return method(*arguments, **named_arguments)

    return call


def _facts(trainer: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What all processes must have in common when they call a method of the trainer: plain values by their names."""
    facts = {name: _data_facts(value) if name in _DATA else _plain(value) for name, value in given.items()}
    facts |= {f"Trainer's {name}": value for name, value in vars(trainer.settings).items()}
    facts |= {"Trainer's metrics": None if trainer.metrics is None else list(trainer.metrics)}
    kinds = [type(callback).__name__ for callback in trainer.callbacks.callbacks]
    facts |= {"callbacks": [kind for kind in kinds if kind not in _REPORTERS]}
    return facts | {
        "precision": trainer.engine.precision,
        "rates": trainer.optimizer.learning_rates,
        "step": trainer.step,
    }


def _plain(value: Any) -> Any:
    """A value that can be compared between processes: the value if it is plain, otherwise the name of its type."""
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    return str(value) if isinstance(value, (Path, schedules.Schedule, datetime.timedelta)) else type(value).__name__


def _data_facts(data: Any) -> Any:
    """The sizes of data, which must be the same on all processes; those of each set if there are several sets."""
    if data is None:
        return None
    if isinstance(data, Mapping):
        return {name: _data_facts(one) for name, one in data.items()}
    workers = getattr(data, "num_workers", None)
    samples = length(data.dataset) if hasattr(data, "dataset") else None
    return {"batches": length(data), "batch_size": batch_size_of_all(data), "samples": samples, "num_workers": workers}


def description_of_processes(processes: int, data: Any, accumulate: int) -> str:
    """A sentence that says how many samples a step of several processes takes, because a rate is for that number.

    Args:
        processes: The number of processes.
        data: The training data, shared among the processes.
        accumulate: Batches of each process in a step.
    """
    size = batch_size_of_all(data)
    accumulated = f", {accumulate} of them to a step" if accumulate > 1 else ""
    if size is None:
        return f"{processes} processes train together{accumulated}"
    return f"{processes} processes: batches of {size // processes} x {processes} = {size} samples{accumulated}"
