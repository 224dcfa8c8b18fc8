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
from mxtorch.engines.base import Engine

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
    same_data = trainer.engine.splits_data
    facts = {name: _data_facts(value, same_data) if name in _DATA else _plain(value) for name, value in given.items()}
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


def _data_facts(data: Any, same_data: bool) -> Any:
    """The sizes of data, which must be the same on all processes; those of each set if there are several sets.

    Args:
        data: What a process was given.
        same_data: Whether all processes are given the same. Parts may differ by some samples, and it is the number of
            batches that decides whether the processes take as many steps.
    """
    if data is None:
        return None
    if isinstance(data, Mapping):
        return {name: _data_facts(one, same_data) for name, one in data.items()}
    workers = getattr(data, "num_workers", None)
    samples = length(data.dataset) if same_data and hasattr(data, "dataset") else None
    return {"batches": length(data), "batch_size": batch_size_of_all(data), "samples": samples, "num_workers": workers}


def description_of_processes(engine: Engine, data: Any, accumulate: int) -> str:
    """A sentence that says how many samples a step of several processes takes, because a rate is for that number.

    Args:
        engine: The engine, which knows the number of processes.
        data: This process's part of the training data.
        accumulate: Batches of each process in a step.
    """
    size, processes = batch_size_of_all(data), engine.world_size
    accumulated = f", {accumulate} of them to a step" if accumulate > 1 else ""
    if size is None:
        return f"{processes} processes train together{accumulated}"
    each = size // processes if engine.splits_data else size  # a loader of a part knows nothing of the others
    return f"{processes} processes: batches of {each} x {processes} = {each * processes} samples{accumulated}"
