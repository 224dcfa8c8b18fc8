"""Several optimizers of one trainer: each is a ScheduledOptim, and each is found by its name."""

from __future__ import annotations

from collections.abc import Mapping

from torch.optim import Optimizer

from mxtorch._checks import closest
from mxtorch.optim.scheduled import ScheduledOptim


def as_scheduled(optimizers: Mapping[str, Optimizer] | None) -> dict[str, ScheduledOptim]:
    """The optimizers by name, each wrapped in a ScheduledOptim; an empty dictionary for None.

    Raises:
        TypeError: `optimizers` is not a mapping from names to torch optimizers.
        ValueError: An optimizer has no rate that can be scheduled.
    """
    if optimizers is None:
        return {}
    if not isinstance(optimizers, Mapping) or not all(isinstance(name, str) for name in optimizers):
        raise TypeError(f"other_optimizers: got {optimizers!r}; give a dictionary of optimizers by name")
    return {
        name: optimizer if isinstance(optimizer, ScheduledOptim) else ScheduledOptim(optimizer)
        for name, optimizer in optimizers.items()
    }


def chosen_optimizer(
    optimizer: ScheduledOptim, others: Mapping[str, ScheduledOptim], choice: str | Optimizer | None
) -> ScheduledOptim:
    """The optimizer that a user chose.

    Args:
        optimizer: The trainer's own optimizer.
        others: The other optimizers of the trainer, by name.
        choice: None for the trainer's own optimizer, the name of another one, or one of the optimizers itself, wrapped
            or not.

    Raises:
        ValueError: The trainer has no such optimizer.
    """
    if choice is None:
        return optimizer
    if isinstance(choice, str):
        if choice in others:
            return others[choice]
        raise ValueError(f"optimizer: got {choice!r}{closest(choice, others)}; None is the trainer's own")
    for known in (optimizer, *others.values()):
        if choice is known or choice is known.optimizer:
            return known
    raise ValueError(
        f"optimizer: got {type(choice).__name__}, which the trainer does not know; give it to the Trainer as "
        "other_optimizers={name: optimizer}, then its name here"
    )
