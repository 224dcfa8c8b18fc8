"""Whether all processes were given the same, before they train together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mxtorch.engines import processes
from mxtorch.optim.scheduled import ScheduledOptim


def check_same(call: str, facts: Mapping[str, Any]) -> None:
    """Raise on all processes where one of them was given something else, or makes another call.

    Args:
        call: What is called, as `"fit"`.
        facts: What it was given, by the names of the arguments, in values that can be pickled and compared.
    """
    everyone = processes.gather((call, dict(facts)))
    calls = [other for other, _ in everyone]
    if len(set(calls)) > 1:
        raise ValueError(f"the processes do not call the same: {_each(calls)}")
    for name in {name: None for _, given in everyone for name in given}:
        values = [given.get(name) for _, given in everyone]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"{name}: the processes were not given the same for {call}: {_each(values)}; let the script do the "
                "same on all of them"
            )


def described(modules: list[nn.Module]) -> list[tuple[str, str, tuple[int, ...], str, bool]]:
    """Names, kinds and shapes of all parameters and buffers, to be compared between processes."""
    found = []
    for index, module in enumerate(modules):
        tensors = [*module.named_parameters(), *module.named_buffers()]
        for name, tensor in tensors:
            place = f"loss.{name}" if index else name
            shape = tuple(getattr(tensor, "shape", ()))
            found.append((place, type(module).__name__, shape, str(tensor.dtype), tensor.requires_grad))
    return found


def described_optimizers(optimizers: tuple[ScheduledOptim, ...]) -> list[tuple[str, list[int]]]:
    """Kinds of all optimizers, and how many parameters their groups have, to be compared between processes."""
    return [
        (type(optimizer.optimizer).__name__, [len(group["params"]) for group in optimizer.param_groups])
        for optimizer in optimizers
    ]


def _each(values: list[Any]) -> str:
    """What each process has, those that agree together; of long lists what differs first."""
    if all(isinstance(value, list) for value in values):
        length = min(map(len, values))
        at = next((i for i in range(length) if any(value[i] != values[0][i] for value in values)), None)
        values = [len(value) if at is None else value[at] for value in values]
    kinds: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        kinds.setdefault(repr(value)[:200], []).append(rank)
    return ", ".join(
        f"{text} on process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
        for text, ranks in kinds.items()
    )
