"""Several optimizers in one trainer: what `Trainer(other_optimizers=...)` and `find_lr(optimizer=...)` take."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim import Optimizer

from mxtorch._validation import closest
from mxtorch.optim import ScheduledOptim


def scheduled(optimizers: Mapping[str, Optimizer] | None) -> dict[str, ScheduledOptim]:
    """The optimizers by name, each a ScheduledOptim.

    Raises:
        TypeError: It is no mapping from names to torch optimizers.
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


def chosen(
    optimizer: ScheduledOptim, others: Mapping[str, ScheduledOptim], choice: str | Optimizer | None
) -> ScheduledOptim:
    """The optimizer that is meant: the trainer's own for None, one of the others by name, or either by itself.

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


def load_states(states: Iterable[tuple[ScheduledOptim, dict[str, Any]]]) -> None:
    """Load the state of each optimizer, or, where one refuses its own, of none."""
    loaded: list[tuple[ScheduledOptim, dict[str, Any]]] = []
    try:
        for optimizer, state in states:
            before = copy.deepcopy(optimizer.state_dict())
            optimizer.load_state_dict(state)
            loaded.append((optimizer, before))
    except Exception:
        for optimizer, before in loaded:
            optimizer.load_state_dict(before)
        raise


def states_of(
    content: Mapping[str, Any], optimizer: ScheduledOptim, others: Mapping[str, ScheduledOptim], path: object
) -> list[tuple[ScheduledOptim, dict[str, Any]]]:
    """Each optimizer with its state in a checkpoint.

    Raises:
        ValueError: The checkpoint has other names.
    """
    saved = content.get("other_optimizers", {})
    if set(saved) != set(others):
        raise ValueError(
            f"{path} has other_optimizers named {sorted(saved)}, the trainer has {sorted(others)}; make the trainer as "
            "the one that saved"
        )
    return [(optimizer, content["optimizer"]), *((other, saved[name]) for name, other in others.items())]
