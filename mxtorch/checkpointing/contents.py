"""What a checkpoint holds: named parts with `state_dict` and `load_state_dict`, loaded all or none."""

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
from mxtorch.checkpointing import file
from mxtorch.checkpointing.file import CheckpointError, check_same_tensors
from mxtorch.checkpointing.random_state import random_state, set_random_state
from mxtorch.checkpointing.serialization import frozen
from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.optim.scheduled import ScheduledOptim

# Optimizers whose state has the shapes of the parameters, and where everything else is a number.
_ELEMENTWISE = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.Adamax, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta),
)
_NUMBERS = ("step", "mu_product")


class Stateful(Protocol):
    """An object whose state a checkpoint holds (the protocol of torch's `torch.distributed.checkpoint.stateful`)."""

    def state_dict(self) -> Any:
        """The state: tensors and plain values."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Put back what `state_dict` gave."""


@dataclass(frozen=True)
class Part:
    """A `Stateful` made of functions.

    Attributes:
        state_dict: Gives the state.
        load_state_dict: Puts it back.
        check: Raises for a state that is not this part's own, before any part is loaded.
    """

    state_dict: Callable[[], Any]
    load_state_dict: Callable[[Any], Any]
    check: Callable[[Any], None] = lambda state_dict: None


def module_part(module: nn.Module, what: str) -> Part:
    """Parameters and persistent buffers of a module; names and shapes are compared before anything is loaded."""

    def check(state_dict: Any) -> None:
        if not isinstance(state_dict, dict):
            raise TypeError(f"the {what} is a {type(state_dict).__name__}, not a dictionary")
        check_same_tensors(module.state_dict(), state_dict, what)

    return Part(module.state_dict, module.load_state_dict, check)


def trainable_part(model: nn.Module) -> Part:
    """Which parameters of a model are trained: `requires_grad` of each, in their order."""

    def load(flags: list[bool]) -> None:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(bool(flag))

    return Part(lambda: [parameter.requires_grad for parameter in model.parameters()], load)


def optimizer_part(optimizer: ScheduledOptim) -> Part:
    """An optimizer with its schedule; a state that it would only fail at in its next step is refused."""

    def check(state_dict: Any) -> None:
        if not isinstance(state_dict, dict):
            raise TypeError(f"the optimizer is a {type(state_dict).__name__}, not a dictionary")
        _check_optimizer(optimizer, state_dict)

    def load(state_dict: Any) -> None:
        settings = {name for group in optimizer.param_groups for name in group} - {"base_lr", "initial_lr"}
        optimizer.load_state_dict(state_dict)
        if any(lacking := settings - group.keys() for group in optimizer.param_groups):
            raise ValueError(f"the optimizer's settings lack {', '.join(sorted(lacking))}")

    return Part(optimizer.state_dict, load, check)


def optimizers_part(optimizers: Mapping[str, ScheduledOptim]) -> Part:
    """Optimizers by name."""
    parts = {name: optimizer_part(optimizer) for name, optimizer in optimizers.items()}

    def check(states: Any) -> None:
        if set(states) != set(parts):
            raise ValueError(
                f"it has other_optimizers named {sorted(states)}, the trainer has {sorted(parts)}; make the trainer as "
                "the one that saved"
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
        parts: Loaded in this order, after `check` of every `Part` among them.
    """

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        self.parts = dict(parts)

    def collect(self) -> dict[str, Any]:
        """The states of all parts, copied: later steps do not change the copy.

        Raises:
            TypeError: A part has a state that no file can hold; its place in the content is named.
        """
        versions = {"mxtorch": __version__, "torch": torch.__version__, "python": platform.python_version()}
        states = {"versions": versions} | {name: part.state_dict() for name, part in self.parts.items()}
        copied: dict[str, Any] = frozen(states, "checkpoint")
        return copied

    def apply(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Load all parts; returns what each `load_state_dict` returned.

        Raises:
            Exception: Whatever a part raises for a state that is not its own.
        """
        if missing := [name for name in self.parts if name not in saved]:
            raise CheckpointError(f"it lacks {', '.join(missing)}, which every checkpoint of this trainer has")
        for name, part in self.parts.items():
            if isinstance(part, Part):
                part.check(saved[name])
        return {name: part.load_state_dict(saved[name]) for name, part in self.parts.items()}


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content; its parts are checked when they are loaded.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is no checkpoint, is damaged, is of another version, or has no position.
    """
    saved = file.read(path)
    position = saved.get("position")
    if not isinstance(position, dict) or type(position.get("step")) is not int or "run" not in saved:
        raise CheckpointError(f"{path} is damaged: it has no position, or no place in a run")
    return saved


@contextlib.contextmanager
def all_or_nothing(
    path: str | Path, before: TrainingState, parts: Iterable[Stateful], objects: Iterable[object]
) -> Iterator[None]:
    """Undo everything after an error in the block, and raise it as a CheckpointError.

    Args:
        path: The checkpoint, for the message.
        before: A copy of what steps change.
        parts: Their states are put back.
        objects: Their attributes are put back.
    """
    attributes = [(one, dict(vars(one))) for one in objects]
    states = [(part, frozen(part.state_dict())) for part in parts]
    try:
        yield
    except Exception as error:
        before.restore()
        for one, values in attributes:
            vars(one).clear()
            vars(one).update(values)
        for part, state in states:
            part.load_state_dict(state)
        if isinstance(error, FileNotFoundError):
            raise
        reason = f"{error}" if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} can't be loaded here: {reason}") from error


@contextlib.contextmanager
def undone_without_a_step(before: TrainingState, position: Any) -> Iterator[None]:
    """Undo everything when an error comes before the first optimizer step was taken.

    Args:
        before: A copy of what steps change.
        position: An object that counts steps as `step`; its attributes are put back, too.
    """
    counts = dict(vars(position))
    try:
        yield
    except Exception:
        if position.step == counts["step"]:
            before.restore()
            vars(position).update(counts)
        raise


def _check_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Raise where settings or state are of a kind that the optimizer would fail at in its next step only."""
    for group, other in zip(optimizer.param_groups, saved["param_groups"], strict=False):
        for name, value in group.items():
            if name in ("params", "param_names"):
                continue
            if not isinstance(other.get(name, value), _kinds_like(value)):
                raise ValueError(f"the optimizer's {name} is {other[name]!r}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    inner = optimizer.optimizer if isinstance(optimizer, ScheduledOptim) else optimizer
    for index, entry in saved["state"].items() if type(inner) in _ELEMENTWISE else ():
        for name, value in entry.items():
            fits = isinstance(value, Tensor) and (value.shape == parameters[index].shape or name == "step")
            if not fits and not (value is None or (name in _NUMBERS and isinstance(value, (int, float, Tensor)))):
                raise ValueError(f"the optimizer's {name} of parameter {index} is malformed")


def _kinds_like(value: Any) -> tuple[type, ...]:
    if isinstance(value, bool) or value is None:
        return (bool, type(None))
    if isinstance(value, (int, float, Tensor)):
        return (int, float, Tensor, type(None))
    return (object,)
