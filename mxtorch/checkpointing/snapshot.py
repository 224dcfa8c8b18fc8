"""Everything that a training step changes: capture it, put it back.

One definition serves the learning-rate finder (capture, sweep, restore), the rollback of a first step that
failed, and the files of `mxtorch.checkpoint`.
"""

from __future__ import annotations

import contextlib
import copy
import random
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

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
    settings and those of optimizers that it wraps, the gradient scaler, the random number generators (Python,
    NumPy, torch on every device), and what decides a loader's order: generators and counters of its sampler and data
    set, persistent worker processes.

    Gradients are kept by reference: a step must begin with `zero_grad(set_to_none=True)`, as `Trainer`'s does.

    Args:
        modules: The model, and a loss that is a module.
        optimizer: The optimizer, wrapped or not.
        scaler: The gradient scaler, if one is in use.
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
        scaler: torch.amp.GradScaler | None = None,
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
        self._scaler = scaler
        # Whole, not by its state_dict: that lacks the stage which a step that was broken off leaves behind.
        self._scaler_attributes = None if scaler is None else copy.deepcopy(vars(scaler))
        if owner is not None:
            self._containers.append(_Container(vars(owner)))
            for value in () if before_first_step else vars(owner).values():
                self._capture_value(value)
        self._loader = loader
        self._capture_loader(loader)
        if not before_first_step:
            self.set_workers_aside()
        self._random = _raw_random_state()

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
            if self._scaler is not None and self._scaler_attributes is not None:
                vars(self._scaler).update(copy.deepcopy(self._scaler_attributes))
            for generator, state in self._generators:
                set_generator_state(generator, state)
            _set_raw_random_state(self._random)

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


class LoaderState(TrainingState):
    """A copy of what decides a loader's next pass: its samplers, its data set's counters, the random generators.

    Args:
        loader: What batches are drawn from.
    """

    def __init__(self, loader: Any) -> None:
        super().__init__((), None, loader=loader, before_first_step=True)

    def restore_global_generators(self) -> None:
        """Put back Python's, NumPy's and torch's global generators alone."""
        _set_raw_random_state(self._random)


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


def random_state() -> dict[str, Any]:
    """The state of every global random number generator, as values that `torch.load(weights_only=True)` takes."""
    state = _raw_random_state()
    state["python"] = packed_python_state(state["python"])
    state["numpy"] = packed_numpy_state(state["numpy"])
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    python, numpy = unpacked_python_state(state["python"]), unpacked_numpy_state(state["numpy"])
    _set_raw_random_state({**state, "python": python, "numpy": numpy})


def packed_python_state(state: Any) -> list[Any]:
    """The state of a `random.Random`, its 625 integers as one tensor."""
    version, internal, next_gaussian = state
    return [version, torch.from_numpy(np.array(internal, dtype=np.int64)), next_gaussian]


def unpacked_python_state(state: Any) -> tuple[Any, ...]:
    """What `random.Random.setstate` takes."""
    version, internal, next_gaussian = state
    return version, tuple(internal.tolist() if isinstance(internal, Tensor) else internal), next_gaussian


def packed_numpy_state(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a NumPy bit generator, arrays as int64 tensors (its words may have fewer bits, never more)."""
    inner = {
        name: torch.from_numpy(value.astype(np.int64)) if isinstance(value, np.ndarray) else value
        for name, value in state["state"].items()
    }
    return {**state, "state": inner}


def unpacked_numpy_state(state: dict[str, Any]) -> dict[str, Any]:
    """What NumPy takes for what `packed_numpy_state` gave."""
    inner = {
        name: value.numpy().astype(np.uint64) if isinstance(value, Tensor) else value
        for name, value in state["state"].items()
    }
    return {**state, "state": inner}


def _raw_random_state() -> dict[str, Any]:
    """As `random_state`, in the forms that the generators themselves give."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.xpu.is_available() and torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
        state["xpu"] = torch.xpu.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def _set_raw_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "xpu" in state:
        torch.xpu.set_rng_state_all(state["xpu"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])


@contextlib.contextmanager
def preserved_modes(model: nn.Module) -> Iterator[None]:
    """Put training and evaluation modes back, module by module, after the block."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def set_training_mode(model: nn.Module) -> None:
    """Training mode, except for what is frozen.

    A module whose parameters all have `requires_grad=False`, with all inside it, stays in evaluation mode: running
    statistics are part of what is frozen, and dropout there would be noise that nothing learns to bear.
    """
    model.train()
    _keep_frozen_in_evaluation(model)


def _keep_frozen_in_evaluation(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        _keep_frozen_in_evaluation(child)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (torch's on every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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


def is_generator(part: Any) -> bool:
    """Whether it is a random number generator of torch, Python or NumPy."""
    return isinstance(part, (torch.Generator, random.Random, np.random.Generator, np.random.RandomState))


def generator_state(generator: Any) -> Any:
    """The state of a generator, in the form that it itself gives."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.get_state()


def set_generator_state(generator: Any, state: Any) -> None:
    """Put back what `generator_state` returned."""
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state
