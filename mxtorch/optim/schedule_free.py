"""Optimizers that want no learning rate found or scheduled: what `lr` means there, and how they are handled.

They are told by the names of their classes and by what their parameter groups hold, so that none of their packages is
imported (dadaptation, prodigyopt, schedulefree, pytorch-optimizer), and so that subclasses and copies are known too.

- D-Adaptation (Defazio and Mishchenko 2023, arXiv 2301.07733) and Prodigy (Mishchenko and Defazio 2023, arXiv
  2306.06101) estimate their step size; `lr` multiplies it, and belongs at 1.
- Schedule-Free (Defazio et al. 2024, arXiv 2405.15682) takes a real rate, but averages weights instead of lowering it.
  It computes gradients at one point and is meant to be evaluated at another: its `train()` and `eval()` move the
  parameters between the two.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Under these names an optimizer keeps the one it wraps.
_WRAPPED = ("optimizer", "base_optimizer", "base")
_MARKS = ("dadapt", "prodigy", "schedulefree")
# What goes with the estimate `d` in a parameter group of D-Adaptation and Prodigy; `d` alone could be anything.
_ESTIMATE_KEYS = {"d0", "d_max", "d_numerator", "growth_rate", "numerator_weighted"}
_AVERAGE_KEYS = {"weight_sum", "lr_max"}


class RateFree(NamedTuple):
    """What kind of optimizer it is; one can be both."""

    name: str
    estimates_rate: bool
    averages_weights: bool


def recognise(optimizer: Optimizer) -> RateFree | None:
    """What an optimizer, or one that it wraps, does about the learning rate by itself; None for an ordinary one."""
    parts = list(chain(optimizer))
    names = [_names(part) for part in parts]
    keys = {key for part in parts for group in part.param_groups for key in group}
    estimates = any("dadapt" in name or "prodigy" in name for name in names)
    averages = any("schedulefree" in name for name in names)
    told_by_name = (part for part, name in zip(parts, names, strict=True) if any(mark in name for mark in _MARKS))
    teller = next(told_by_name, parts[-1])  # a wrapper shares the groups of the innermost one
    estimates |= "d" in keys and bool(keys & _ESTIMATE_KEYS)
    averages |= keys >= _AVERAGE_KEYS
    return RateFree(type(teller).__name__, estimates, averages) if estimates or averages else None


def _names(optimizer: Optimizer) -> str:
    """Modules and names of its class and the bases of that."""
    names = " ".join(f"{kind.__module__}.{kind.__name__}" for kind in type(optimizer).__mro__)
    return names.lower().replace("_", "")


def chain(optimizer: Any) -> Iterator[Any]:
    """An optimizer, the one that it wraps, the one that that wraps."""
    seen: list[Any] = []
    while isinstance(optimizer, Optimizer) and not any(optimizer is part for part in seen):
        seen.append(optimizer)
        yield optimizer
        attributes = vars(optimizer)
        optimizer = next((attributes[name] for name in _WRAPPED if name in attributes), None)


# ---------------------------------------------------------------- warnings


def warn_of_rate(optimizer: Optimizer, rate: float, *, stacklevel: int = 3) -> None:
    """Warn where `rate`, the base rate, is no multiplier that such an optimizer is meant to have."""
    kind = recognise(optimizer)
    if kind is not None and kind.estimates_rate and rate != 1:
        warnings.warn(
            f"{kind.name} estimates its learning rate while it trains; its lr only multiplies the estimate, and is "
            f"{rate:g} here. Leave it at 1.0 (a schedule that ends below 1 is fine).",
            stacklevel=stacklevel,
        )


def warn_of_schedule(optimizer: Optimizer, schedule: object, *, stacklevel: int = 3) -> None:
    """Warn of a schedule for an optimizer that averages its weights instead."""
    kind = recognise(optimizer)
    if kind is not None and kind.averages_weights and schedule is not None and not _is_constant(schedule):
        warnings.warn(
            f"{kind.name} is Schedule-Free: it averages its weights instead of lowering the rate, and a schedule on "
            "top of that spoils it. Leave the schedule out; its own warmup_steps= is for a warm-up.",
            stacklevel=stacklevel,
        )


def warn_of_sweep(optimizer: Optimizer, *, stacklevel: int = 3) -> None:
    """Warn that the result of a range test does not mean for this optimizer what it means for others."""
    kind = recognise(optimizer)
    if kind is None:
        return
    if kind.estimates_rate:
        meaning = (
            "estimates its learning rate while it trains. Its lr is a multiplier, not a rate, and so are the numbers "
            "of this result: do not train with them, leave lr at 1.0."
        )
    else:
        meaning = (
            "is Schedule-Free: its lr is a real rate, but the weights are averaged over the sweep, which shifts the "
            "curve. Take the suggestion as a starting point, train without a schedule, and try rates above it too."
        )
    warnings.warn(f"find_lr: {kind.name} {meaning}", stacklevel=stacklevel)


def warn_of_norms(model: nn.Module, optimizers: Iterable[Optimizer], *, stacklevel: int = 3) -> None:
    """Warn of running statistics that belong to other weights than those that are evaluated."""
    kinds = [kind for kind in map(recognise, optimizers) if kind is not None and kind.averages_weights]
    tracks = any(getattr(module, "track_running_stats", False) for module in model.modules())
    if kinds and tracks:
        warnings.warn(
            f"{kinds[0].name} is Schedule-Free, and the model has batch normalisation: its running statistics belong "
            "to the weights of training, not to the averaged ones that are evaluated. After fit call "
            "torch.optim.swa_utils.update_bn(train_data, model), or take group or layer normalisation.",
            stacklevel=stacklevel,
        )


def _is_constant(schedule: object) -> bool:
    return type(schedule).__name__ in ("Constant", "ConstantLR")


# ---------------------------------------------------------------- the two points of Schedule-Free


def set_training_point(optimizers: Iterable[Optimizer]) -> None:
    """Move parameters to where gradients are computed, as Schedule-Free's `train()` does; others are left alone."""
    for part in _with_points(optimizers):
        part.train()


@contextlib.contextmanager
def evaluated_afterwards(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """After the block, move parameters to where such optimizers are to be evaluated, and their weights to be used."""
    try:
        yield
    finally:
        for part in _with_points(optimizers):
            part.eval()


@contextlib.contextmanager
def evaluation_point(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """In the block parameters are where such optimizers are to be evaluated; after it they are what they were.

    Moving there and back rounds, so the values are copied, and evaluating changes no bit of a run.
    """
    moved = [(part, _values(part)) for part in _with_points(optimizers) if _is_training(part)]
    try:
        for part, _ in moved:
            part.eval()
        yield
    finally:
        with torch.no_grad():
            for part, values in moved:
                part.train()
                for parameter, value in values:
                    parameter.copy_(value)


def _with_points(optimizers: Iterable[Optimizer]) -> list[Any]:
    """Those that have a mode, as torch's own optimizers have not."""
    parts = [part for optimizer in optimizers for part in chain(optimizer)]
    return [part for part in parts if callable(_own(part, "train")) and callable(_own(part, "eval"))]


def _own(part: Any, name: str) -> Any:
    """A method of the class: a wrapper that forwards unknown names has none of its own."""
    return getattr(type(part), name, None)


def _is_training(part: Any) -> bool:
    """Its mode is in its parameter groups, or an attribute; True where neither tells."""
    return any(group.get("train_mode", getattr(part, "train_mode", True)) for group in part.param_groups)


def _values(part: Any) -> list[tuple[Tensor, Tensor]]:
    parameters = [parameter for group in part.param_groups for parameter in group["params"]]
    return [(parameter, parameter.detach().clone()) for parameter in parameters]
