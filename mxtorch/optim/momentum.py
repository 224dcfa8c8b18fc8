"""Momentum that a schedule cycles: that of SGD and RMSprop, beta1 of Adam and its kin; ratios between groups stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mxtorch.optim import schedule_free

# The momentum that a group was made with, while a schedule cycles it; a checkpoint holds it with the group.
OWN = "own_momentum"


def check_ratios(optimizer: Optimizer, schedule: Any) -> None:
    """Raise where the ratio of a group to the first one would bring its momentum to 1 or more.

    Raises:
        ValueError: It would. Nothing has changed.
    """
    own = [group.get(OWN, of_group(group)) for group in _cycled(optimizer)]
    first = next((momentum for momentum in own if momentum), None)
    highest = getattr(schedule, "max_momentum", None)
    if first is None or highest is None:
        return
    for momentum in own:
        if momentum and momentum / first * highest >= 1:
            ratio = momentum / first
            raise ValueError(
                f"schedule: {type(schedule).__name__} cycles the momentum of {first:g} up to {highest:g}, and by its "
                f"ratio to that, a group's {momentum:g} up to {ratio * highest:g}, which must be below 1; give a lower "
                "max_momentum, or cycle_momentum=False"
            )


def begin(optimizer: Optimizer) -> None:
    """Note the momentum of each group, as that from which ratios are taken. Groups without one are left alone."""
    for group in _cycled(optimizer):
        momentum = of_group(group)
        if momentum and OWN not in group:
            group[OWN] = momentum


def apply(groups: Sequence[dict[str, Any]], momentum: float | None) -> None:
    """Give the first group that has a momentum this one, and the others in their ratios to it.

    Args:
        groups: Parameter groups of an optimizer with which `begin` was called.
        momentum: None gives each group its own momentum back.
    """
    first = None
    for group in groups:
        own = group.get(OWN)
        if own is not None:
            first = own if first is None else first
            _set(group, own if momentum is None else momentum if own == first else momentum * (own / first))


def restore(optimizer: Optimizer) -> None:
    """Give each group its own momentum back, and forget that it was cycled."""
    for group in optimizer.param_groups:
        if OWN in group:
            _set(group, group.pop(OWN))


def of_group(group: dict[str, Any]) -> float | None:
    """The momentum of a parameter group, or its beta1; None of a group that has neither."""
    value = group["betas"][0] if "betas" in group else group.get("momentum")
    return None if value is None else float(value)


def _cycled(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups whose momentum may change: in Schedule-Free, beta1 is a place between two points and must not."""
    kind = schedule_free.recognise(optimizer)
    return [] if kind is not None and kind.averages_weights else optimizer.param_groups


def _set(group: dict[str, Any], momentum: float) -> None:
    if "betas" not in group:
        group["momentum"] = momentum
    elif isinstance(group["betas"][0], Tensor):  # a captured graph reads this very tensor
        with torch.no_grad():
            group["betas"][0].fill_(momentum)
    else:
        group["betas"] = (momentum, *group["betas"][1:])
