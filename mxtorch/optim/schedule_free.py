"""Optimizers that estimate their learning rate, or average weights in place of a schedule.

- D-Adaptation (Defazio and Mishchenko 2023, arXiv 2301.07733) and Prodigy (Mishchenko and Defazio 2023, arXiv
  2306.06101) estimate their step size `d` while they train. Their `lr` multiplies the estimate and belongs at 1.
- Schedule-Free (Defazio et al. 2024, arXiv 2405.15682) takes a real learning rate and averages weights instead of
  lowering the rate. It computes gradients at one point and is evaluated at another; its `train()` and `eval()` move
  the parameters between the two.

None of their packages is imported (dadaptation, prodigyopt, schedulefree, pytorch-optimizer): what the parameter groups
hold and which methods there are says what an optimizer does.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

# What the average of Schedule-Free is weighted by: in a parameter group, or an attribute of a wrapper.
_AVERAGE_SETTINGS = {"weight_sum", "weight_lr_power"}


class RateFree(NamedTuple):
    """What an optimizer does about the learning rate by itself. It can do both."""

    name: str
    estimates_rate: bool
    averages_weights: bool


def recognise(optimizer: Optimizer) -> RateFree | None:
    """What an optimizer, or the one that it wraps, does about the learning rate by itself; None for an ordinary one."""
    for part in reversed(chain_of(optimizer)):  # the innermost first: a wrapper shares its groups
        settings = {name for group in part.param_groups for name in group}
        estimates = "d" in settings and "beta2_decay" not in settings  # torch's Adafactor has both
        averages = not _AVERAGE_SETTINGS.isdisjoint({*settings, *vars(part)})
        if estimates or averages:
            return RateFree(type(part).__name__, estimates, averages)
    return None


def chain_of(optimizer: Any) -> list[Any]:
    """An optimizer, the one that it holds as an attribute, the one that that holds."""
    parts: list[Any] = []
    while optimizer is not None and not any(optimizer is part for part in parts):
        parts.append(optimizer)
        optimizer = next((value for value in vars(optimizer).values() if isinstance(value, Optimizer)), None)
    return parts


# ---------------------------------------------------------------- warnings


def warn_of_rate(optimizer: Optimizer, rate: float, *, stacklevel: int = 3) -> None:
    """Warn if an optimizer that estimates its rate is given a base rate other than 1."""
    kind = recognise(optimizer)
    if kind is not None and kind.estimates_rate and rate != 1:
        warnings.warn(
            f"{kind.name} estimates its learning rate while it trains; its lr only multiplies the estimate, and is "
            f"{rate:g} here. Leave it at 1.0 (a schedule that ends below 1 is fine).",
            stacklevel=stacklevel,
        )


def warn_of_schedule(optimizer: Optimizer, schedule: object, *, stacklevel: int = 3) -> None:
    """Warn if an optimizer that averages its weights is given a schedule that is not constant."""
    kind = recognise(optimizer)
    if kind is not None and kind.averages_weights and schedule is not None and not _is_constant(schedule):
        warnings.warn(
            f"{kind.name} is Schedule-Free: it averages its weights instead of lowering the rate, and a schedule on "
            "top of that spoils it. Leave the schedule out; its own warmup_steps= is for a warm-up.",
            stacklevel=stacklevel,
        )


def warn_of_search(optimizer: Optimizer, method: str, *, stacklevel: int = 3) -> None:
    """Warn if the result of a search means something else for such an optimizer than for others.

    Args:
        optimizer: The optimizer whose rate is searched.
        method: The method of the search. Short trainings average weights as the training does; a sweep does not.
        stacklevel: As for `warnings.warn`.
    """
    kind = recognise(optimizer)
    if kind is None:
        return
    if kind.estimates_rate:
        meaning = (
            "estimates its learning rate while it trains. Its lr is a multiplier, not a rate, and so are the numbers "
            "of this result: do not train with them, leave lr at 1.0."
        )
    elif method != "sweep":
        return
    else:
        meaning = (
            "is Schedule-Free: its lr is a real rate, but the weights are averaged over the sweep, which shifts the "
            "curve. Take the suggestion as a starting point and train without a schedule, or search with "
            "method='trials', whose short trainings are judged by averaged weights."
        )
    warnings.warn(f"find_lr: {kind.name} {meaning}", stacklevel=stacklevel)


def warn_of_norms(model: nn.Module, optimizers: Iterable[Optimizer], *, stacklevel: int = 3) -> None:
    """Warn if a model has running statistics, and an optimizer averages weights: they do not fit the average."""
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
    """Whether it is mxtorch's or torch's constant schedule."""
    return type(schedule).__name__ in ("Constant", "ConstantLR")


# ---------------------------------------------------------------- the two points of Schedule-Free


def set_training_point(optimizers: Iterable[Optimizer]) -> None:
    """Move parameters to the point where gradients are computed. Other optimizers' parameters stay."""
    for part in _with_two_points(optimizers):
        part.train()


def at_training_point(optimizers: Iterable[Optimizer]) -> list[Any]:
    """The optimizers, also wrapped ones, that have parameters where gradients are computed, and can move them."""
    # The mode is in the groups or an attribute; one that has neither is taken to train.
    return [
        part
        for part in _with_two_points(optimizers)
        if any(group.get("train_mode", getattr(part, "train_mode", True)) for group in part.param_groups)
    ]


@contextlib.contextmanager
def evaluated_afterwards(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """After the block, move parameters to the averaged point, where they are evaluated and used."""
    try:
        yield
    finally:
        for part in _with_two_points(optimizers):
            part.eval()


@contextlib.contextmanager
def evaluation_point(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """In the block, parameters are at the averaged point; after it they are what they were, bit for bit.

    Moving there and back rounds, so the parameters are copied before and copied back after.
    """
    moved = []
    for part in at_training_point(optimizers):
        parameters = [parameter for group in part.param_groups for parameter in group["params"]]
        moved.append((part, [(parameter, parameter.detach().clone()) for parameter in parameters]))
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


def _with_two_points(optimizers: Iterable[Optimizer]) -> list[Any]:
    """The optimizers, also wrapped ones, whose class has `train()` and `eval()`. Torch's own have neither.

    Methods of the class: a wrapper that forwards unknown names would seem to have them.
    """
    parts = [part for optimizer in optimizers for part in chain_of(optimizer)]
    return [part for part in parts if all(callable(getattr(type(part), name, None)) for name in ("train", "eval"))]
