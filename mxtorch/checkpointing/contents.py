"""The content of a checkpoint: named parts with `state_dict` and `load_state_dict`. Either all are loaded, or none."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mxtorch._version import __version__
from mxtorch.checkpointing import file, sharded
from mxtorch.checkpointing.file import CheckpointError, check_same_tensors
from mxtorch.checkpointing.random_state import random_state, set_random_state
from mxtorch.checkpointing.serialization import frozen
from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.optim.scheduled import ScheduledOptim

# Optimizers whose state consists of tensors in the shapes of the parameters, and of numbers.
_ELEMENTWISE = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.Adamax, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta),
)
_NUMBERS = ("step", "mu_product")


class Stateful(Protocol):
    """An object whose state a checkpoint holds: the protocol of `torch.distributed.checkpoint.stateful`."""

    def state_dict(self) -> Any:
        """The state: tensors and plain values."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Restore what `state_dict` returned."""


@dataclass(frozen=True)
class Part:
    """A `Stateful` that consists of functions.

    Attributes:
        state_dict: Returns the state.
        load_state_dict: Restores the state.
        check: Raises an error if a state does not fit this part. It is called before any part is loaded.
    """

    state_dict: Callable[[], Any]
    load_state_dict: Callable[[Any], Any]
    check: Callable[[Any], None] = lambda state_dict: None


def module_part(module: nn.Module, what: str) -> Part:
    """The parameters and persistent buffers of a module. `check` compares their names and shapes."""

    def check(state_dict: Any) -> None:
        if not isinstance(state_dict, dict):
            raise TypeError(f"the {what} is a {type(state_dict).__name__}, not a dictionary")
        check_same_tensors(module.state_dict(), state_dict, what)

    return Part(module.state_dict, module.load_state_dict, check)


def trainable_part(model: nn.Module) -> Part:
    """The attribute `requires_grad` of each parameter of a model, in the order of the parameters."""

    def load(flags: list[bool]) -> None:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(bool(flag))

    return Part(lambda: [parameter.requires_grad for parameter in model.parameters()], load)


def optimizer_part(optimizer: ScheduledOptim) -> Part:
    """An optimizer with its schedule. `check` refuses a state that would raise an error only in the next step."""

    def check(state_dict: Any) -> None:
        if not isinstance(state_dict, dict):
            raise TypeError(f"the optimizer is a {type(state_dict).__name__}, not a dictionary")
        _check_optimizer(optimizer, state_dict)

    def load(state_dict: Any) -> None:
        settings = {name for group in optimizer.param_groups for name in group} - {"base_lr", "initial_lr"}
        optimizer.load_state_dict(state_dict)
        if any(missing := settings - group.keys() for group in optimizer.param_groups):
            raise ValueError(f"the saved settings of the optimizer have no {', '.join(sorted(missing))}")

    return Part(optimizer.state_dict, load, check)


def optimizers_part(optimizers: Mapping[str, ScheduledOptim]) -> Part:
    """Several optimizers by name."""
    parts = {name: optimizer_part(optimizer) for name, optimizer in optimizers.items()}

    def check(states: Any) -> None:
        if set(states) != set(parts):
            raise ValueError(
                f"it has other_optimizers named {sorted(states)}, but the trainer has {sorted(parts)}; give the "
                "trainer the optimizers of the saved run"
            )
        for name, part in parts.items():
            part.check(states[name])

    def load(states: dict[str, Any]) -> None:
        for name, part in parts.items():
            part.load_state_dict(states[name])

    return Part(lambda: {name: part.state_dict() for name, part in parts.items()}, load, check)


def random_part() -> Part:
    """The global random generators of Python, NumPy and torch."""
    return Part(random_state, set_random_state)


class Contents:
    """The parts of a checkpoint, by name.

    Args:
        parts: The parts in the order in which they are loaded. Before that, `check` of every `Part` is called.
    """

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        self.parts = dict(parts)

    def collect(self) -> dict[str, Any]:
        """A copy of the states of all parts, which later steps do not change.

        Raises:
            TypeError: A part has a state that no file can hold. The message names the place of the value.
        """
        versions = {"mxtorch": __version__, "torch": torch.__version__, "python": platform.python_version()}
        states = {"versions": versions} | {name: part.state_dict() for name, part in self.parts.items()}
        copied: dict[str, Any] = frozen(states, "checkpoint")
        return copied

    def apply(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Load all parts; return the result of each `load_state_dict` by name.

        Raises:
            CheckpointError: The checkpoint does not have all parts.
            Exception: Whatever a part raises if a state does not fit it.
        """
        if missing := [name for name in self.parts if name not in saved]:
            raise CheckpointError(f"it has no {', '.join(missing)}, which every checkpoint of this trainer has")
        for name, part in self.parts.items():
            if isinstance(part, Part):
                part.check(saved[name])
        return {name: part.load_state_dict(saved[name]) for name, part in self.parts.items()}


def read(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint. The parts are checked later, when they are loaded.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is no checkpoint, is damaged, has another version, or has no position.
    """
    saved = sharded.read(Path(path)) if sharded.is_sharded(path) else file.read(path)
    position = saved.get("position")
    if not isinstance(position, dict) or type(position.get("step")) is not int or "run" not in saved:
        raise CheckpointError(f"{path} is damaged: it has no position, or no entry for the run")
    return saved


@contextlib.contextmanager
def all_or_nothing(
    path: str | Path, before: TrainingState, parts: Iterable[Stateful], objects: Iterable[object]
) -> Iterator[None]:
    """Undo everything after an error in the block, and raise the error as a CheckpointError.

    Args:
        path: The checkpoint, for the message.
        before: A copy of what steps change.
        parts: Parts whose states are restored.
        objects: Objects whose attributes are restored.
    """
    attributes = [(one, dict(vars(one))) for one in objects]
    states = [(part, frozen(part.state_dict())) for part in parts]
    try:
        yield
    except Exception as error:
        before.restore()
        for part, state in states:
            part.load_state_dict(state)
        for one, values in attributes:  # last, for objects that note that a state was loaded
            vars(one).clear()
            vars(one).update(values)
        if isinstance(error, FileNotFoundError):
            raise
        reason = f"{error}" if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} can't be loaded here: {reason}") from error


@contextlib.contextmanager
def undone_without_a_step(before: TrainingState, position: Any, objects: Iterable[object]) -> Iterator[None]:
    """Undo everything if an error occurs before the first optimizer step.

    Args:
        before: A copy of what steps change.
        position: An object that counts steps as `step`. Its attributes are restored, too.
        objects: Further objects whose attributes are restored.
    """
    step = position.step
    attributes = [(one, dict(vars(one))) for one in (position, *objects)]
    try:
        yield
    except Exception:
        if position.step == step:
            before.restore()
            for one, values in attributes:
                vars(one).clear()
                vars(one).update(values)
        raise


def _check_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Raise if a setting or a state has a type at which the optimizer would fail only in its next step."""
    for group, other in zip(optimizer.param_groups, saved["param_groups"], strict=False):
        for name, value in group.items():
            if name in ("params", "param_names"):
                continue
            if not isinstance(other.get(name, value), _kinds_like(value)):
                raise ValueError(f"the saved setting {name} of the optimizer is {other[name]!r}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    inner = optimizer.optimizer if isinstance(optimizer, ScheduledOptim) else optimizer
    for index, entry in saved["state"].items() if type(inner) in _ELEMENTWISE else ():
        for name, value in entry.items():
            fits = isinstance(value, Tensor) and (value.shape == parameters[index].shape or name == "step")
            if not fits and not (value is None or (name in _NUMBERS and isinstance(value, (int, float, Tensor)))):
                raise ValueError(f"the saved state {name} of parameter {index} is malformed")


def _kinds_like(value: Any) -> tuple[type, ...]:
    if isinstance(value, bool) or value is None:
        return (bool, type(None))
    if isinstance(value, (int, float, Tensor)):
        return (int, float, Tensor, type(None))
    return (object,)
