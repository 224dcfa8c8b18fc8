"""Schedulers of torch and timm: their settings, their state, and what they watch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from types import FunctionType
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

# What changes while a scheduler is stepped, and what it takes from the optimizer. The rest are settings.
_POSITION = frozenset(
    (
        *(
            "last_epoch",
            "base_lrs",
            "base_values",
            "best",
            "num_bad_epochs",
            "cooldown_counter",
            "T_cur",
            "T_i",
            "metric",
        ),
        *("restore_lr", "warmup_steps", "verbose", "optimizer", "lr_lambdas"),
    )
)
# Settings that a scheduler keeps in the parameter groups.
_IN_GROUPS = ("max_lr", "min_lr", "max_momentum", "base_momentum")


@runtime_checkable
class TimmScheduler(Protocol):
    """A scheduler of timm (`timm.scheduler.Scheduler`): it is given counts, and knows whether it counts epochs.

    Attributes:
        optimizer: Whose groups it sets.
        t_in_epochs: Whether it counts epochs; otherwise optimizer steps.
    """

    optimizer: Optimizer
    t_in_epochs: bool

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Set the rates for the epoch to come; `epoch` are over."""

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Set the rates for the step to come; `num_updates` are taken."""


ExternalScheduler = LRScheduler | TimmScheduler


def is_external(schedule: Any) -> bool:
    """Whether it is a scheduler of torch or timm, which sets the rates of an optimizer by itself."""
    return isinstance(schedule, (LRScheduler, TimmScheduler))


def mode_of(scheduler: Any) -> Literal["min", "max"] | None:
    """Of a scheduler that watches a figure, which way the figure improves; None of others."""
    inner = getattr(scheduler, "lr_scheduler", scheduler) if isinstance(scheduler, TimmScheduler) else scheduler
    return inner.mode if isinstance(inner, ReduceLROnPlateau) else None


def state_of(scheduler: ExternalScheduler) -> dict[str, Any]:
    """The whole state of a scheduler; the `state_dict` of timm's plateau leaves its counters out."""
    if isinstance(scheduler, LRScheduler):
        state: dict[str, Any] = scheduler.state_dict()
        return state
    return {
        name: state_of(value) if isinstance(value, LRScheduler) else value
        for name, value in vars(scheduler).items()
        if name != "optimizer"
    }


def loaded(scheduler: ExternalScheduler, state: Mapping[str, Any]) -> None:
    """Put back what `state_of` gave."""
    if isinstance(scheduler, LRScheduler):
        scheduler.load_state_dict(dict(state))
        return
    for name, value in state.items():
        inner = getattr(scheduler, name, None)
        if isinstance(inner, LRScheduler):
            loaded(inner, value)
        else:
            setattr(scheduler, name, value)


def settings(scheduler: ExternalScheduler) -> str:
    """What a scheduler was made with, as text: two of the same text give the same rates from the same position.

    Of functions, as those of LambdaLR, the numbers that are given to them are compared, not the code; see
    `described_function`.
    """
    shown = [
        f"{name}={_shown(value)}"
        for name, value in sorted(vars(scheduler).items())
        if name not in _POSITION and not _is_private(name) and not isinstance(value, (FunctionType, type(None)))
    ]
    functions = getattr(scheduler, "lr_lambdas", None)
    if functions is not None:
        shown.append(f"functions={[described_function(function) for function in functions]}")
    if isinstance(scheduler, (CyclicLR, OneCycleLR)):
        for name in _IN_GROUPS:
            values = [_shown(group[name]) for group in scheduler.optimizer.param_groups if name in group]
            if values and f"{name}s" not in vars(scheduler):
                shown.append(f"{name}={', '.join(values) if len(set(values)) > 1 else values[0]}")
    return f"{type(scheduler).__name__}({', '.join(shown)})"


def described_function(function: Any) -> str:
    """A function by its name and the numbers and texts that it was made with: arguments, defaults, enclosed variables.

    Example:
        >>> def warm_up(steps):
        ...     return lambda step: min(1.0, step / steps)
        >>> described_function(warm_up(5))
        "<lambda>('steps': 5)"
    """
    if isinstance(function, functools.partial):
        values = {**{str(index): value for index, value in enumerate(function.args)}, **function.keywords}
        return f"{described_function(function.func)}({_plain_items(values)})"
    if not isinstance(function, FunctionType):
        return f"{type(function).__name__}({_plain_items(getattr(function, '__dict__', {}))})"
    values = {f"default {index}": value for index, value in enumerate(function.__defaults__ or ())}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # the variable has no value yet
            values[name] = cell.cell_contents
    return f"{function.__name__}({_plain_items(values)})"


def _plain_items(values: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))}
    return _shown(plain)[1:-1]


def _is_private(name: str) -> bool:
    return name.startswith("_") and name not in ("_schedulers", "_milestones", "_anneal_func_type")


def _shown(value: Any) -> str:
    if isinstance(value, LRScheduler):
        return settings(value)
    if isinstance(value, Tensor):
        return repr(value.tolist())
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_shown(item)}" for key, item in sorted(value.items())) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, (bool, int, float, str, type(None))):
        return repr(value)
    return type(value).__name__
