"""What can be wrong with a model, an optimizer or data, told before anything changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer
from torch.utils.data import Dataset, IterableDataset


def check_integer(value: Any, argument: str, *, at_least: int = 1) -> None:
    """Raise unless `value` is an integer of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument}: got {value!r}; give an integer of at least {at_least}")
    if value < at_least:
        raise ValueError(f"{argument}: got {value}; give an integer of at least {at_least}")


def check_parameters(
    model: nn.Module, loss: nn.Module | None, optimizer: Optimizer, others: Iterable[Optimizer] = ()
) -> None:
    """Raise unless the optimizer trains the model; warn of trainable parameters that it and the others leave out."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {model!r}; give a torch.nn.Module")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: got {optimizer!r}; give a ScheduledOptim or another torch optimizer")
    named = dict(model.named_parameters())
    lazy = [name for name, parameter in named.items() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"model: {lazy[0]} has no shape yet; pass one batch through the model, then make the optimizer"
        )
    trainable = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    if not trainable:
        raise ValueError("model: got a model without trainable parameters; set requires_grad_(True) on some")
    groups = [group for part in (optimizer, *others) for group in part.param_groups]
    held = {id(parameter) for group in groups for parameter in group["params"]}
    left_out = [name for name, parameter in trainable.items() if id(parameter) not in held]
    if len(left_out) == len(trainable):
        raise ValueError(
            "optimizer: got one that holds none of the model's trainable parameters; make it from "
            "model.parameters(), after the last change to the model's layers"
        )
    if loss is not None:
        left_out += [f"loss.{n}" for n, p in loss.named_parameters() if p.requires_grad and id(p) not in held]
    if left_out:
        names = ", ".join(left_out[:4]) + (f" and {len(left_out) - 4} more" if len(left_out) > 4 else "")
        warnings.warn(
            f"The optimizer leaves out trainable parameters: {names}. If a layer was replaced after the optimizer "
            "was made, make the optimizer again; if they are meant to stay, set requires_grad_(False).",
            stacklevel=3,
        )


def check_data(data: Any, argument: str, *, passes: int) -> None:
    """Raise unless `data` can be iterated over `passes` times and is not known to be empty."""
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(f"{argument}: got a data set, {type(data).__name__}; wrap it in a torch.utils.data.DataLoader")
    if not isinstance(data, Iterable):
        raise TypeError(f"{argument}: got {data!r}; give a DataLoader or another iterable of batches")
    if isinstance(data, Iterator) and passes > 1:
        raise ValueError(
            f"{argument}: got {type(data).__name__}, which can be read only once; give a DataLoader, a list, or an "
            "object whose __iter__ starts anew"
        )
    if length(data) == 0:
        raise ValueError(f"{argument}: got a loader that yields no batches; give it at least one")


def length(data: Any) -> int | None:
    """The number of batches, or None where it isn't known."""
    try:
        return len(data)
    except TypeError:  # what DataLoader raises over an IterableDataset without a length
        return None
