"""Optimizers within an optimizer, as SAM and Lookahead have them: their groups stay shared, and their state is saved.

`load_state_dict` of torch gives an optimizer new parameter groups, and knows nothing of the optimizer within it, which
would go on with the old groups, at their rate, and without its momentum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

from mxtorch.optim.schedule_free import chain_of

STATES = "inner_states"


def states(optimizer: Optimizer, content: Mapping[str, Any]) -> dict[str, Any]:
    """What a state_dict lacks: the states of the optimizers within, by the key that holds them.

    Args:
        optimizer: The outer one.
        content: Its state_dict. Where it has more than torch's keys, the optimizer takes care of this itself.
    """
    inner = _with_own_state(optimizer)
    if not inner or content.keys() - {"state", "param_groups"}:
        return {}
    return {STATES: [part.state_dict()["state"] for part in inner]}


@contextmanager
def kept(optimizer: Optimizer, saved: list[Any] | None) -> Iterator[None]:
    """Around a `load_state_dict`: optimizers within keep sharing the groups, and get their states.

    Args:
        optimizer: The outer one.
        saved: What `states` gave; None where there was nothing.
    """
    inner = chain_of(optimizer)[1:]
    sharing = [part for part in inner if _shares_groups(part, optimizer)]
    yield
    own = _with_own_state(optimizer)
    if saved is not None and len(saved) != len(own):
        raise ValueError(f"state_dict: it has states of {len(saved)} inner optimizers, and there are {len(own)}")
    for part, state in zip(own, saved or [], strict=False):
        part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
    for part in sharing:
        part.param_groups = optimizer.param_groups


def _with_own_state(optimizer: Optimizer) -> list[Optimizer]:
    return [part for part in chain_of(optimizer)[1:] if part.state is not optimizer.state]


def _shares_groups(inner: Optimizer, outer: Optimizer) -> bool:
    one, another = inner.param_groups, outer.param_groups
    return len(one) == len(another) and all(a is b for a, b in zip(one, another, strict=True))
