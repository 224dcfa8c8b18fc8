"""The first batch of each kind of step in a faster memory format: a network that can't take it is run without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.engines.base import Engine, TriesMemoryFormat
from mxtorch.engines.memory_format import depends_on_layout
from mxtorch.training.context import Context

Result = TypeVar("Result")


def needs_trial(context: Context, step: str) -> bool:
    """Whether a kind of step has yet to be tried in the engine's memory format."""
    return isinstance(context.engine, TriesMemoryFormat) and context.engine.needs_trial(step)


def in_memory_format(context: Context, step: str, attempt: Callable[..., Result], *arguments: Any) -> Result:
    """Run a step in the engine's memory format, or in the default format where the first fails.

    Args:
        context: The model with everything that computes and changes it.
        step: The kind of step: `"training_step"`, `"evaluation_step"` or `"prediction_step"`.
        attempt: Moves a batch with `engine.move` and computes the step. It changes no parameter before it succeeds.
        *arguments: What `attempt` is called with.

    Returns:
        What `attempt` returned.

    Raises:
        ValueError: The user chose a memory format that the network can't take.
    """

    def capture() -> TrainingState:
        return context.capture(before_first_step=not context.other_optimizers)

    return run_in_memory_format(context.engine, step, capture, attempt, *arguments)


def run_in_memory_format(
    engine: Engine, step: str, capture: Callable[[], TrainingState], attempt: Callable[..., Result], *arguments: Any
) -> Result:
    """As `in_memory_format`, for any kind of work.

    The first run of each kind of step is undone before the second attempt: random generators, buffers, gradients,
    attributes. Later ones, which fail where batches differ in shape, are repeated as they are, and only after errors
    that are about the order of elements in memory.

    Args:
        engine: Where the work is done.
        step: The kind of work.
        capture: Copies what the first attempt may change.
        attempt: Does the work.
        *arguments: What `attempt` is called with.
    """
    if not isinstance(engine, TriesMemoryFormat):
        return attempt(*arguments)
    first = engine.begin_trial(step)
    before = capture() if first else None
    try:
        result = attempt(*arguments)
    except (torch.OutOfMemoryError, FloatingPointError):
        raise
    except Exception as error:
        if not first and not depends_on_layout(error):
            raise
        if not engine.suspend_memory_format():
            _advise(engine, error)
            raise
        if before is not None:
            before.restore()
        return _without_format(engine, step, error, attempt, *arguments)
    if first:
        engine.accept_trial(step)
    return result


def repeats_without_format(context: Context, step: str, error: Exception) -> bool:
    """Whether a step that failed although its kind was tried can be repeated, now in the default memory format.

    Raises:
        ValueError: The user chose a memory format that the network can't take.
    """
    engine = context.engine
    if not isinstance(engine, TriesMemoryFormat) or engine.needs_trial(step) or not depends_on_layout(error):
        return False
    if engine.suspend_memory_format():
        engine.reject_memory_format(step, error)
        return True
    _advise(engine, error)
    return False


def _without_format(
    engine: TriesMemoryFormat, step: str, error: Exception, attempt: Callable[..., Result], *arguments: Any
) -> Result:
    try:
        result = attempt(*arguments)
    except BaseException:
        engine.resume_memory_format()
        raise
    engine.reject_memory_format(step, error)
    return result


def _advise(engine: TriesMemoryFormat, error: Exception) -> None:
    """Raise what a user should do who chose a memory format that the network can't take."""
    if engine.memory_format is not None and depends_on_layout(error):
        raise ValueError(
            f"channels_last: got True, but the network can't take this memory format: {error}. Give 'auto' or False, "
            "or use .reshape or .flatten in place of .view"
        ) from error
