"""A copy, in memory, of everything that a training step changes, and the way back.

One definition serves the learning-rate finder (capture, search, restore), the undoing of a first step that failed, and
the loading of a checkpoint, which changes everything or nothing.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from mxtorch.checkpointing.random_state import (
    generator_state,
    is_generator,
    raw_random_state,
    set_generator_state,
    set_raw_random_state,
)

# Longer containers hold data or vocabularies, not a step's state: they are not searched.
LONGEST_SEARCHED_CONTAINER = 64
# How many references deep a loader is searched: a sampler in a sampler, a transform in a list in a data set.
DEEPEST_SEARCH = 6

# Transforms are often modules, so those are searched; their tensors are weights, not a loader's state.
_NOT_SEARCHED = (Tensor, type, FunctionType, MethodType, ModuleType)


class TrainingState:
    """A copy, in memory, of all that training steps change.

    It covers parameters and buffers (their values and which tensor objects they are), gradients, the modes and
    other attributes of every submodule (also what lists and dictionaries there hold), the optimizer's state and
    settings and those of optimizers that it wraps, the engine's gradient scaler, the random number generators (Python,
    NumPy, torch on every device), and what decides a loader's order: generators and counters of its sampler and data
    set, persistent worker processes.

    Gradients are kept by reference: a step must begin with `zero_grad(set_to_none=True)`, as `Trainer`'s does.

    Args:
        modules: The model, and a loss that is a module.
        optimizer: The optimizer, wrapped or not.
        capture_engine: Copies what a step changes in the engine, and returns a function that puts it back
            (`Engine.capture`).
        loader: What batches are drawn from.
        owner: An object whose own attributes a step may set (the trainer). Tensors, containers, modules and optimizers
            among them, also in lists and dictionaries, are covered as those of `modules` and `optimizer` are.
        before_first_step: Leave out what only `optimizer.step()` changes, parameters and optimizer state: cheap,
            and enough to undo a first step that failed before it got there.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        optimizer: Optimizer | None,
        *,
        capture_engine: Callable[[], Callable[[], None]] | None = None,
        loader: Any = None,
        owner: object | None = None,
        before_first_step: bool = False,
    ) -> None:
        self._containers: list[_Container] = []
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._arrays: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self._gradients: list[tuple[nn.Parameter, Tensor | None]] = []
        self._generators: list[tuple[Any, Any]] = []
        self._optimizer_states: list[tuple[Any, list[tuple[Any, Any]]]] = []
        self._seen: set[int] = set()  # containers, which may hold themselves, and modules and optimizers
        for module in modules:
            self._capture_module(module, whole=not before_first_step)
        if optimizer is not None:
            self._capture_optimizer(optimizer, whole=not before_first_step)
        for part in _modules_and_optimizers(owner):
            if isinstance(part, nn.Module):
                self._capture_module(part, whole=not before_first_step)
            else:
                self._capture_optimizer(part, whole=not before_first_step)
        self._restore_engine = None if capture_engine is None else capture_engine()
        if owner is not None:
            self._containers.append(_Container(vars(owner)))
            for value in () if before_first_step else vars(owner).values():
                self._capture_value(value)
        self._loader = loader
        self._capture_loader(loader)
        if not before_first_step:
            self.set_workers_aside()
        self._random = raw_random_state()

    def restore(self) -> None:
        """Put everything back. It can be called more than once, and Ctrl-C waits until it is done."""
        with deferred_interrupt(), torch.no_grad():
            for container in self._containers:
                container.restore()
            for live, saved in self._tensors.values():
                live.copy_(saved)
            for array, saved_array in self._arrays:
                array[...] = saved_array
            for parameter, gradient in self._gradients:
                parameter.grad = gradient
            for optimizer_state, saved_state in self._optimizer_states:
                optimizer_state.clear()
                optimizer_state.update(_copied(saved_state))
            if self._restore_engine is not None:
                self._restore_engine()
            for generator, state in self._generators:
                set_generator_state(generator, state)
            set_raw_random_state(self._random)

    def set_workers_aside(self) -> None:
        """Give the loader's next pass fresh workers: persistent ones carry random states. `restore` returns them."""
        if isinstance(self._loader, DataLoader) and getattr(self._loader, "_iterator", None) is not None:
            vars(self._loader)["_iterator"] = None

    def _capture_module(self, root: nn.Module, *, whole: bool) -> None:
        for module in root.modules():
            if id(module) in self._seen:
                continue
            self._seen.add(id(module))
            attributes = vars(module)
            self._containers += [_Container(attributes)]
            for name, value in attributes.items():
                if name == "_parameters" and not whole:
                    self._containers.append(_Container(value))
                elif name == "_modules":
                    self._containers.append(_Container(value))  # these are visited by themselves
                else:
                    self._capture_value(value)
        self._gradients += [(parameter, parameter.grad) for parameter in root.parameters()]

    def _capture_value(self, value: Any) -> None:
        """A tensor, array, generator, or a container of such; anything else is kept by reference."""
        if isinstance(value, Tensor):
            if id(value) not in self._tensors:
                self._tensors[id(value)] = (value, value.detach().clone())
        elif isinstance(value, np.ndarray):
            if value.flags.writeable:
                self._arrays.append((value, value.copy()))
        elif is_generator(value):
            self._generators.append((value, generator_state(value)))
        elif isinstance(value, (dict, list, set, deque)) and id(value) not in self._seen:
            self._seen.add(id(value))
            self._containers.append(_Container(value))
            if len(value) <= LONGEST_SEARCHED_CONTAINER:
                for item in value.values() if isinstance(value, dict) else value:
                    self._capture_value(item)

    def _capture_optimizer(self, optimizer: Optimizer, *, whole: bool) -> None:
        if id(optimizer) in self._seen:
            return
        self._seen.add(id(optimizer))
        attributes = vars(optimizer)
        self._containers.append(_Container(attributes))
        for group in attributes.get("param_groups", ()):
            self._containers.append(_Container(group))
            for name, value in group.items():
                if name != "params":  # a tensor as the learning rate is one to copy
                    self._capture_value(value)
                elif whole:  # they may be of no module that is known here
                    self._gradients += [(parameter, parameter.grad) for parameter in value]
                    for parameter in value:
                        self._capture_value(parameter)
        if whole and "state" in attributes:
            self._optimizer_states.append((attributes["state"], _copied(attributes["state"].items())))
        for name, value in attributes.items():
            if isinstance(value, Optimizer):  # one that is wrapped
                self._capture_optimizer(value, whole=whole)
            elif whole and name not in ("param_groups", "state"):
                self._capture_value(value)

    def _capture_loader(self, loader: Any) -> None:
        for part in parts_of(loader):
            if is_generator(part):
                self._generators.append((part, generator_state(part)))
            else:
                self._containers.append(_Container(vars(part)))


class LoaderSnapshot(TrainingState):
    """A copy of what decides a loader's next pass: its samplers, its data set's counters, the random generators.

    Args:
        loader: What batches are drawn from.
    """

    def __init__(self, loader: Any) -> None:
        super().__init__((), None, loader=loader, before_first_step=True)

    def restore_global_generators(self) -> None:
        """Put back Python's, NumPy's and torch's global generators alone."""
        set_raw_random_state(self._random)


class _Container:
    """A shallow copy of a container: which objects it held, in which order."""

    def __init__(self, live: Any) -> None:
        self.live = live
        self.items: Any = dict(live) if isinstance(live, dict) else list(live)

    def restore(self) -> None:
        if isinstance(self.live, dict):
            for key in [key for key in self.live if key not in self.items]:
                del self.live[key]
            for key, value in self.items.items():
                if key not in self.live or self.live[key] is not value:
                    self.live[key] = value
        elif isinstance(self.live, list):
            self.live[:] = self.items
        else:  # a set or a deque
            self.live.clear()
            self.live.update(self.items) if isinstance(self.live, set) else self.live.extend(self.items)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done, so that it can't leave things half restored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if received and callable(previous):
        previous(*received[0])


def _copied(items: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Deep copies of the values; the keys, which are the parameters themselves, stay."""
    return [(key, copy.deepcopy(value)) for key, value in items]


def parts_of(loader: Any, deepest: int = DEEPEST_SEARCH) -> list[Any]:
    """The objects a loader is made of (samplers, data sets, transforms, generators), breadth first."""
    found: list[Any] = []
    seen: set[int] = set()
    level = [loader]
    for _ in range(deepest):
        next_level: list[Any] = []
        for part in level:
            if id(part) in seen:
                continue
            seen.add(id(part))
            if isinstance(part, (list, tuple, dict)):
                values = list(part.values()) if isinstance(part, dict) else list(part[:LONGEST_SEARCHED_CONTAINER])
                next_level += values if len(values) <= LONGEST_SEARCHED_CONTAINER else []
            elif is_generator(part):
                found.append(part)
            elif hasattr(part, "__dict__") and not isinstance(part, _NOT_SEARCHED):
                found.append(part)
                next_level += [value for name, value in vars(part).items() if name != "_iterator"]
        level = next_level
    return found


def _modules_and_optimizers(owner: object) -> list[nn.Module | Optimizer]:
    """Those among an object's attributes, and in lists, tuples and dictionaries there."""
    found: list[nn.Module | Optimizer] = []
    for value in [] if owner is None else vars(owner).values():
        items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
        found += [item for item in items if isinstance(item, (nn.Module, Optimizer))]
    return found
