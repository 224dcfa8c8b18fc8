"""Checks of arguments, and how their errors read. Every check comes before anything changes."""

from __future__ import annotations

import difflib
import itertools
import math
import operator
import os
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer
from torch.utils.data import Dataset, IterableDataset


def number(value: Any) -> float | None:
    """A Python, NumPy or 0-dimensional tensor number as a float; None where `value` is no real number.

    An integer beyond the range of floats is infinite.
    """
    if type(value) is float:  # the usual case, also in every step of a range test
        return value
    if not _is_scalar(value) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def whole_number(value: Any) -> int | None:
    """A Python, NumPy or 0-dimensional tensor integer as an int; None where `value` is none, as 2.0 is."""
    try:
        return operator.index(value) if _is_scalar(value) else None
    except TypeError:
        return None


def positive_rate(value: Any, argument: str) -> float:
    """`value` as a float.

    Args:
        value: A Python, NumPy or 0-dimensional tensor number.
        argument: What the error calls it.

    Raises:
        TypeError: It is not a number.
        ValueError: It is zero, negative, NaN or infinite.
    """
    rate = number(value)
    if rate is None:
        several = isinstance(value, (slice, tuple, list, Mapping))
        hint = "; for a rate for each layer group, give the optimizer parameter groups, each with an 'lr'"
        raise TypeError(f"{argument}: got {value!r}; give a finite positive number{hint if several else ''}")
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{argument}: got {rate}; give a finite positive number")
    return rate


def rate_or_zero(value: Any, argument: str) -> float:
    """As `positive_rate`, with 0 allowed: the rate of what is not to move, or of a warm-up's first step."""
    return 0.0 if number(value) == 0 else positive_rate(value, argument)


def local_path(path: Any, argument: str) -> Path:
    """A path of this machine, with `~` as the user's home.

    Raises:
        TypeError: It is no path.
        ValueError: It is an address of another machine, such as `s3://bucket`.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{argument}: got {path!r}; give a path")
    text = os.fspath(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):  # Path("s3://x") is "s3:/x"; one letter is a drive of Windows
        raise ValueError(
            f"{argument}: got {text!r}; only paths of this machine's file system can be written and read. Give one, "
            "and copy the files with a tool of the storage, or mount it"
        )
    return Path(text).expanduser()


def closest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message: the names closest to `name`, and all there are."""
    names = list(choices)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ";"
    return f"{hint} There are: {', '.join(names)}"


def shortened(names: Collection[Any], most: int) -> str:
    """Names for a message: the first `most` of them, and how many more there are.

    Example:
        >>> shortened(["a", "b", "c", "d"], 2)
        'a, b and 2 more'
        >>> shortened(["a", "b"], 2)
        'a, b'
    """
    shown = ", ".join(map(str, itertools.islice(names, most)))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def level_of_user() -> int:
    """The `stacklevel` with which a warning of the calling function names the user's line.

    It is that of the nearest caller outside of mxtorch, however many functions of mxtorch are between the two.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_between(str(frame.f_globals.get("__name__"))):
        level, frame = level + 1, frame.f_back
    return level


def check_integer(value: Any, argument: str, *, at_least: int = 1) -> int:
    """`value`, a Python, NumPy or 0-dimensional tensor integer, as an int of at least `at_least`.

    Raises:
        TypeError: It is no integer; 2.0 and True are none.
        ValueError: It is smaller than `at_least`.
    """
    whole = whole_number(value)
    if whole is None:
        raise TypeError(f"{argument}: got {value!r}; give an integer of at least {at_least}")
    if whole < at_least:
        raise ValueError(f"{argument}: got {whole}; give an integer of at least {at_least}")
    return whole


def check_loss_function(loss: Any) -> None:
    """Raise unless `loss` can be called with outputs and targets, or is None.

    Raises:
        TypeError: It can't be called, or is a class in place of an instance.
    """
    if isinstance(loss, type):
        raise TypeError(f"loss: got the class {loss.__name__}; give an instance, {loss.__name__}()")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss: got {loss!r}; give a function or module of (outputs, targets), or None")


def check_parameters(
    model: nn.Module,
    loss: nn.Module | None,
    optimizer: Optimizer,
    others: Iterable[Optimizer] = (),
    *,
    known: Collection[str] = (),
) -> list[str]:
    """Raise unless the optimizer trains the model; warn of trainable parameters that it and the others leave out.

    Args:
        model: The module that is trained.
        loss: The loss, if it is a module.
        optimizer: The optimizer.
        others: Further optimizers.
        known: Names that were warned of before, and are not again.

    Returns:
        The names of the parameters that are left out.
    """
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
    new = [name for name in left_out if name not in known]
    if new:
        warnings.warn(
            f"The optimizer leaves out trainable parameters: {shortened(new, 4)}. If a layer was replaced "
            "after the optimizer was made, make the optimizer again; if they are meant to stay, set "
            "requires_grad_(False).",
            stacklevel=level_of_user(),
        )
    return left_out


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


def _is_between(module: str) -> bool:
    """Whether a function of this module can be between a warning and the user who is warned."""
    return module.startswith("mxtorch.") or module == "contextlib"


def _is_scalar(value: Any) -> bool:
    """True for a single value that is not a truth value or text, of which Python would make numbers too."""
    is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
    return not is_bool and not isinstance(value, (str, bytes)) and tuple(getattr(value, "shape", ())) == ()
