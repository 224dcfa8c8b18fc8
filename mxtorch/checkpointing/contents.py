"""All of a trainer as the content of a checkpoint, and back: wholly or not at all."""

from __future__ import annotations

import contextlib
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mxtorch import checkpoint, portable, several, state
from mxtorch._version import __version__
from mxtorch.checkpoint import CheckpointError, check_same_tensors
from mxtorch.optim import ScheduledOptim
from mxtorch.run import Run

if TYPE_CHECKING:
    from mxtorch.trainer import Trainer

PARTS = (
    *("model", "loss", "trainable", "attributes", "optimizer", "scaler", "callbacks", "step", "epoch"),
    *("other_optimizers", "skipped_steps", "micro_batches", "history", "random", "run"),
)
# With one of these changed it is another run.
REFUSED = ("optimizer", "parameter groups", "precision", "accumulate", "batches", "batch_size", "samples")
# Optimizers whose state has the shapes of the parameters, and what besides is a number.
_ELEMENTWISE = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.Adamax, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta),
)
_NUMBERS = ("step", "mu_product")
# With one of these changed it goes on, but not as it would have gone on.
WARNED = ("clip_grad_norm", "num_workers", "prefetch_factor", "persistent_workers", "device", "validation")


def content(trainer: Trainer) -> dict[str, Any]:
    """Everything that `fit` needs to go on, copied: later steps do not change it.

    Raises:
        TypeError: A callback, scheduler or loader has a state that no file can hold; it is named.
    """
    scaler, run = trainer.engine.scaler, trainer.run
    copied: dict[str, Any] = portable.frozen(
        {
            "versions": {"mxtorch": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "model": trainer.model.state_dict(),
            "loss": None if trainer.loss_module is None else trainer.loss_module.state_dict(),
            "trainable": [parameter.requires_grad for parameter in trainer.model.parameters()],
            "attributes": trainer.attributes.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "other_optimizers": {name: other.state_dict() for name, other in trainer.other_optimizers.items()},
            "scaler": None if scaler is None else scaler.state_dict(),
            "callbacks": [[type(one).__name__, one.state_dict()] for one in trainer.callbacks.callbacks],
            "step": trainer.step,
            "epoch": trainer.epoch,
            "skipped_steps": trainer.skipped_steps,
            "micro_batches": trainer.micro_batches,
            "history": {
                "rows": portable.packed_rows(trainer.history.rows),
                "records": portable.packed_rows(trainer.history.records),
            },
            "random": state.random_state(),
            "run": None if run is None else run.state_dict(stopping=trainer.stopping),
        },
        "checkpoint",
    )
    if run is not None:
        copied["run"]["settings"] = run.settings  # plain, and the same all through the run
    return copied


def load(trainer: Trainer, path: str | Path) -> None:
    """Put everything back but the place in a run; see `Trainer.load`."""
    saved = read(path)
    with all_or_nothing(trainer, path):
        _apply(trainer, saved, path)


def resume(trainer: Trainer, run: Run, saved: dict[str, Any], path: str | Path) -> None:
    """Put everything back, and `run` to its place.

    Raises:
        CheckpointError: It is of another model, optimizer, schedule or of other data; nothing has changed then.
    """
    place = saved["run"]
    if place is None:
        raise CheckpointError(
            f"{path} was saved between two runs and has no place to resume at; trainer.load(path) loads it, then fit "
            "begins a run"
        )
    with all_or_nothing(trainer, path, run, run.plan, run.scheduler.scheduler):
        changed = _check_same_run(run.settings, place["settings"], path)
        left_over = _apply(trainer, saved, path)
        run.settings = place["settings"] | {"epochs": run.plan.epochs}
        run.load_state_dict(place, trainer.train_metrics, trainer.engine.device)
        trainer.stopping = bool(place["stopping"])
    changed += [f"{name} has a state in the checkpoint and is not among the callbacks" for name in left_over]
    if changed:
        warnings.warn(f"The run goes on, but not bit for bit as it would have: {'; '.join(changed)}.", stacklevel=2)


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content in today's form.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is no checkpoint, is damaged, or is of a newer version.
    """
    saved = checkpoint.read(path)
    try:
        saved = saved if saved["format_version"] == checkpoint.FORMAT_VERSION else _from_version_1(saved)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} lacks {error}, which every checkpoint of its version has") from error
    if missing := [name for name in PARTS if name not in saved]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}, which every checkpoint of its version has")
    place = saved["run"]
    if type(saved["step"]) is not int or not (
        place is None
        or (isinstance(place, dict) and isinstance(place.get("settings"), dict) and type(place.get("ordinal")) is int)
    ):
        raise CheckpointError(f"{path} is damaged: its step is {saved['step']!r}, or its place in the run malformed")
    return saved


def _from_version_1(saved: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had no attributes, callbacks or place in a run, and the tables as lists."""
    return {
        **{name: saved[name] for name in ("model", "loss", "optimizer", "scaler", "step", "epoch", "random")},
        "history": {"rows": saved["history"]["rows"], "records": saved["history"]["records"]},
        "versions": {},
        "trainable": None,
        "attributes": {},
        "callbacks": [],
        "other_optimizers": saved.get("other_optimizers", {}),
        "skipped_steps": 0,
        "micro_batches": 1,
        "run": None,
    }


@contextlib.contextmanager
def all_or_nothing(trainer: Trainer, path: str | Path, *others: Any) -> Iterator[None]:
    """Undo everything after an error, the attributes of others too, and raise it as a CheckpointError."""
    attributes = [(other, dict(vars(other))) for other in others if other is not None]
    before = trainer.capture(None)
    gradients_and_flags = [(parameter, parameter.requires_grad) for parameter in trainer.model.parameters()]
    history = (trainer.history.rows, trainer.history.records)
    callbacks = [(one, portable.frozen(one.state_dict())) for one in trainer.callbacks.callbacks]
    try:
        yield
    except Exception as error:
        before.restore()
        for other, values in attributes:
            vars(other).update(values)
        trainer.history.rows, trainer.history.records = history
        for parameter, flag in gradients_and_flags:
            parameter.requires_grad_(flag)
        for one, saved in callbacks:
            if saved:
                one.load_state_dict(saved)
        if isinstance(error, (CheckpointError, FileNotFoundError)):
            raise
        raise CheckpointError(f"{path} can't be loaded here: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def undone_without_a_step(trainer: Trainer, loader: Any) -> Iterator[None]:
    """Undo everything when an error comes before the first optimizer step was taken."""
    # A training_step steps the other optimizers itself, before the first step that is counted here.
    before = trainer.capture(loader, before_first_step=not trainer.other_optimizers)
    step = trainer.step
    try:
        yield
    except Exception:
        if trainer.step == step:
            before.restore()
        raise


def _apply(trainer: Trainer, saved: dict[str, Any], path: str | Path) -> list[str]:
    """Put everything back but the place in a run; returns the names of callbacks that are left over."""
    check_same_tensors(trainer.model.state_dict(), _dictionary(saved, "model"), path)
    loss = None if saved["loss"] is None else trainer.loss_module
    if loss is not None:
        check_same_tensors(loss.state_dict(), _dictionary(saved, "loss"), path, "loss")
    rows, records = (portable.unpacked_rows(saved["history"][name]) for name in ("rows", "records"))
    _check_optimizer(trainer.optimizer, _dictionary(saved, "optimizer"))
    for optimizer, content in several.states_of(saved, trainer.optimizer, trainer.other_optimizers, path):
        settings = {name for group in optimizer.param_groups for name in group} - {"base_lr", "initial_lr"}
        optimizer.load_state_dict(content)
        if any(lacking := settings - group.keys() for group in optimizer.param_groups):
            raise ValueError(f"the optimizer's settings lack {', '.join(sorted(lacking))}")
    trainer.model.load_state_dict(saved["model"])
    if loss is not None:
        loss.load_state_dict(saved["loss"])
    if saved["trainable"] is not None:
        for parameter, flag in zip(trainer.model.parameters(), saved["trainable"], strict=True):
            parameter.requires_grad_(bool(flag))
    trainer.attributes.load_state_dict(saved["attributes"])
    if trainer.engine.scaler is not None and saved["scaler"]:
        trainer.engine.scaler.load_state_dict(saved["scaler"])
    left_over = _load_callbacks(trainer, saved["callbacks"])
    for name in ("step", "epoch", "skipped_steps", "micro_batches"):
        if type(saved[name]) is not int or saved[name] < (1 if name == "micro_batches" else 0):
            raise CheckpointError(f"{path} is damaged: its {name} is {saved[name]!r}")
        setattr(trainer, name, saved[name])
    state.set_random_state(saved["random"])
    trainer.history.rows, trainer.history.records = rows, records
    return left_over


def _check_optimizer(optimizer: ScheduledOptim, saved: dict[str, Any]) -> None:
    """Raise where settings or state are of a kind that the optimizer would fail at in its next step only."""
    for group, other in zip(optimizer.param_groups, saved["param_groups"], strict=False):
        for name, value in group.items():
            if name in ("params", "param_names"):
                continue
            if not isinstance(other.get(name, value), _kinds_like(value)):
                raise ValueError(f"the optimizer's {name} is {other[name]!r}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    known = type(optimizer.optimizer) in _ELEMENTWISE
    for index, entry in saved["state"].items():
        for name, value in entry.items() if known else ():
            fits = isinstance(value, Tensor) and (value.shape == parameters[index].shape or name == "step")
            if not fits and not (value is None or (name in _NUMBERS and isinstance(value, (int, float, Tensor)))):
                raise ValueError(f"the optimizer's {name} of parameter {index} is malformed")


def _kinds_like(value: Any) -> tuple[type, ...]:
    if isinstance(value, bool) or value is None:
        return (bool, type(None))
    if isinstance(value, (int, float, Tensor)):
        return (int, float, Tensor, type(None))
    return (object,)


def _load_callbacks(trainer: Trainer, saved: list[Any]) -> list[str]:
    """Each state to the next callback of its class; returns the names of states that have no callback."""
    waiting, left_over = list(trainer.callbacks.callbacks), []
    for name, callback_state in saved:
        callback = next((one for one in waiting if type(one).__name__ == name), None)
        if callback is not None:
            waiting.remove(callback)
        if not callback_state:
            continue
        if callback is not None:
            callback.load_state_dict(callback_state)
        elif name != "Checkpoint":
            left_over.append(name)
    return left_over


def _check_same_run(now: dict[str, Any], saved: dict[str, Any], path: str | Path) -> list[str]:
    """Raise where this is another run than the one that was saved; return in what it will differ from it."""
    names = [*REFUSED, *(["schedule"] if now["schedule_given"] else []), *(["lr"] if now["lr"] is not None else [])]
    differences = [
        f"{name} is {_difference(now.get(name), saved.get(name))}" for name in names if now.get(name) != saved.get(name)
    ]
    if differences:
        hint = "; lr='keep' goes on with the run's own" if now["lr"] is not None and now["lr"] != saved["lr"] else ""
        raise CheckpointError(f"{path} is a checkpoint of another run: {'; '.join(differences)}{hint}")
    return [f"{name} is {now.get(name)}, was {saved.get(name)}" for name in WARNED if now.get(name) != saved.get(name)]


def _difference(now: Any, saved: Any) -> str:
    """`now here, saved there`; of parameter groups what differs in the first that does."""
    if not (isinstance(now, list) and isinstance(saved, list)):
        return f"{now!r} here, {saved!r} there"
    if len(now) != len(saved):
        return f"{len(now)} here, {len(saved)} there"
    for index, (here, there) in enumerate(zip(now, saved, strict=True)):
        for name in {**here, **there}:
            if here.get(name) != there.get(name):
                return f"with {name} {here.get(name)!r} here, {there.get(name)!r} there, in group {index}"
    return "different"


def _dictionary(saved: dict[str, Any], name: str) -> dict[str, Any]:
    content = saved[name]
    if not isinstance(content, dict):
        raise TypeError(f"{name} is a {type(content).__name__}, not a dictionary")
    return content
