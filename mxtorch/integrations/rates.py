"""The rates of optimizers that torch's schedulers have a hand in: what they are a schedule of, and how they are set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from mxtorch import schedules
from mxtorch._checks import positive_rate
from mxtorch.lr_finder.without_trainer import Schedule
from mxtorch.optim.schedule_free import chain_of
from mxtorch.optim.scheduled import ScheduledOptim, proportions, set_group_rate

# What torch's schedulers keep in groups that grows and shrinks with the base rate.
_RATES_OF_GROUPS = ("initial_lr", "max_lr", "min_lr")


def schedule_in_force(optimizer: Optimizer, schedulers: Sequence[Any]) -> Schedule:
    """The schedule that a training will run, as far as it can be told.

    Args:
        optimizer: A `ScheduledOptim` with a schedule tells it.
        schedulers: Schedulers of torch; a `LambdaLR` tells it.

    Raises:
        ValueError: There is a scheduler that does not tell its multipliers.
    """
    wrapper = next((part for part in chain_of(optimizer) if isinstance(part, ScheduledOptim)), None)
    if wrapper is not None and wrapper.schedule is not None:
        return wrapper.schedule
    if not schedulers:
        return "constant"
    if len(schedulers) == 1 and isinstance(schedulers[0], LambdaLR):
        function: Any = schedulers[0].lr_lambdas[0]
        return function if isinstance(function, schedules.Schedule) else lambda step: float(function(step))
    names = ", ".join(type(scheduler).__name__ for scheduler in schedulers)
    raise ValueError(
        f"schedule: the training has {names}, which do not tell their multipliers; say what the rate is for, as "
        "schedule='one_cycle', 'cosine' or 'constant', or as a function of the step"
    )


def set_base_rate(optimizer: Optimizer, schedulers: Sequence[Any], rate: float) -> None:
    """Set the rate that schedules multiply, before the first step; groups keep their ratios.

    Args:
        optimizer: A torch optimizer, wrapped or not.
        schedulers: Schedulers of torch that were made for it; their base rates are scaled.
        rate: Of the first parameter group.
    """
    rate = positive_rate(rate, "rate")
    wrapper = next((part for part in chain_of(optimizer) if isinstance(part, ScheduledOptim)), None)
    if wrapper is not None:
        wrapper.set_learning_rate(rate)
        return
    groups = optimizer.param_groups
    bases = [float(group.get("max_lr", group.get("initial_lr", group["lr"]))) for group in groups]
    first = proportions(groups, bases)[0]

    def scaled(value: Any) -> Any:
        """The value in its ratio to the first rate; a tensor, which a captured graph reads, in place."""
        return value.copy_(rate * (value / first)) if isinstance(value, Tensor) else rate * (value / first)

    for group in groups:
        set_group_rate(group, scaled(float(group["lr"])))
        group.update({name: scaled(group[name]) for name in _RATES_OF_GROUPS if name in group})
    for scheduler in schedulers:
        if not isinstance(scheduler, LRScheduler):
            continue
        scheduler.base_lrs = [scaled(base) for base in scheduler.base_lrs]
        if isinstance(scheduler, LambdaLR):  # to the last digit what it would have begun with
            for group, base, function in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
                set_group_rate(group, float(base * function(scheduler.last_epoch)))
        scheduler._last_lr = [float(group["lr"]) for group in groups]
