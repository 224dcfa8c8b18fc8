"""How a run finds its checkpoint and goes on from it: when it is resumed, and when its numbers went bad."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mxtorch import schedules
from mxtorch._checks import length, local_path
from mxtorch.checkpointing.file import CheckpointError
from mxtorch.checkpointing.serialization import frozen
from mxtorch.optim.external_scheduler import described_function, is_external
from mxtorch.optim.momentum import OWN as OWN_MOMENTUM
from mxtorch.optim.run_schedule import RunScheduler
from mxtorch.optim.scheduled import ScheduledOptim

# Halvings of the rate by rollbacks: a run that needs more is not mended by a lower rate.
MOST_ROLLBACKS = 5
# With one of these changed it is another run.
REFUSED = ("optimizer", "parameter groups", "precision", "accumulate", "batches", "batch_size", "samples")
# With one of these changed the run goes on, but not as it would have gone on.
WARNED = ("clip_grad_norm", "num_workers", "prefetch_factor", "persistent_workers", "device", "validation")
# Settings of a parameter group that a schedule or a user changes during a run.
_CHANGING = (
    *("params", "param_names", "lr", "base_lr", "initial_lr", "schedule_position"),
    *("max_lr", "min_lr", "max_momentum", "base_momentum"),
)


class CheckpointFolder(Protocol):
    """A place where checkpoints are kept: the `Checkpoint` callback."""

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole, read; None where there is none."""


def check_arguments(checkpoints: Sequence[CheckpointFolder], resume: Any, on_nonfinite: str, schedule: Any) -> None:
    """Raise where an argument of `fit` needs a `Checkpoint` callback, or can't go with another argument."""
    if resume is not None and not isinstance(resume, (str, os.PathLike)):
        raise TypeError(f"resume: got {resume!r}; give the path of a checkpoint, or 'auto'")
    if resume == "auto" and not checkpoints:
        raise ValueError("resume: got 'auto', but no callback is a Checkpoint; add one to the Trainer's callbacks")
    if resume is not None and resume != "auto" and not local_path(resume, "resume").is_file():
        raise FileNotFoundError(f"resume: there is no file {str(resume)!r}; 'auto' takes the newest checkpoint")
    if on_nonfinite == "rollback":
        if not checkpoints:
            raise ValueError("on_nonfinite: 'rollback' needs a Checkpoint among the Trainer's callbacks")
        if is_external(schedule):
            raise ValueError(
                f"on_nonfinite: 'rollback' halves the base rate, which {type(schedule).__name__} keeps to itself"
            )


def newest_of(checkpoints: Sequence[CheckpointFolder]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of several folders, by its step; None where there is none."""
    found = [newest for one in checkpoints if (newest := one.newest()) is not None]
    return max(found, key=lambda entry: entry[1]["position"]["step"], default=None)


def place_in(saved: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The place in a run that a checkpoint holds.

    Raises:
        CheckpointError: It has none, or the place is malformed.
    """
    place = saved["run"]
    if place is None:
        raise CheckpointError(
            f"{path} was saved between two runs and has no place to resume at; trainer.load(path) loads it, then fit "
            "begins a run"
        )
    fingerprint = place.get("fingerprint") if isinstance(place, dict) else None
    if not isinstance(fingerprint, dict) or type(place.get("ordinal")) is not int:
        raise CheckpointError(f"{path} is damaged: its place in the run is malformed")
    found: dict[str, Any] = place
    return found


class Rollback:
    """Takes a run whose numbers went bad back to its last checkpoint, with half the rate.

    Args:
        checkpoints: Where the run saves.
        load: Loads a checkpoint that was read: `load(saved, path)`.
        optimizer: Its base rate is halved.
        position: Counts steps as `step`; loading sets it.
    """

    def __init__(
        self,
        checkpoints: Sequence[CheckpointFolder],
        load: Callable[[dict[str, Any], Path], None],
        optimizer: ScheduledOptim,
        position: Any,
    ) -> None:
        self._checkpoints, self._load, self._optimizer, self._position = checkpoints, load, optimizer, position
        self._times: Counter[int] = Counter()

    def __call__(self, error: FloatingPointError) -> None:
        """Load the newest checkpoint and halve the base rate, once more for each time it was loaded.

        Raises:
            FloatingPointError: There is no checkpoint yet, or the rate was halved too often.
        """
        found = self._checkpoints[0].newest()
        if found is None or self._times.total() >= MOST_ROLLBACKS:
            raise error
        path, saved = found
        self._load(saved, path)
        self._times[self._position.step] += 1
        factor = 0.5 ** self._times[self._position.step]
        self._optimizer.scale_learning_rate(factor)
        warnings.warn(f"{error}. Rolled back to {path}, with the rate times {factor:g}.", stacklevel=3)


def fingerprint_of(
    optimizer: ScheduledOptim,
    data: Any,
    *,
    scheduler: RunScheduler,
    lr: Any,
    given_schedule: Any,
    **settings: Any,
) -> dict[str, Any]:
    """What a run was started with, as plain values to be compared and named.

    Args:
        optimizer: With its schedule in force.
        data: The training data.
        scheduler: The scheduler of the run, of torch or timm, if there is one.
        lr: The argument of `fit`.
        given_schedule: Likewise.
        settings: Further values that are plain already.
    """
    schedule = optimizer.schedule
    if scheduler.scheduler is not None:
        named = scheduler.described()
    elif schedules.is_savable(schedule):
        named = repr(schedule)
    else:
        named = "none" if schedule is None else described_function(schedule)
    return {
        "optimizer": type(optimizer.optimizer).__name__,
        "parameter groups": [_hyperparameters(group) for group in optimizer.param_groups],
        "schedule": named,
        "schedule_given": given_schedule is not None,
        "scheduler": scheduler.scheduler is not None,
        "lr": float(lr) if type(lr) in (int, float) else None,
        "batches": length(data),
        "batch_size": getattr(data, "batch_size", None),
        "samples": length(data.dataset) if hasattr(data, "dataset") else None,
        "num_workers": getattr(data, "num_workers", None),
        "prefetch_factor": getattr(data, "prefetch_factor", None),
        "persistent_workers": getattr(data, "persistent_workers", None),
        **settings,
    }


def compare(now: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """In what a run will differ from the one that was saved.

    Raises:
        CheckpointError: This is another run.
    """
    if saved.get("scheduler") and not now["schedule_given"]:
        raise CheckpointError(f"fit was given no schedule here, and {saved.get('schedule')!r} there; give it again")
    names = [*REFUSED, *(["schedule"] if now["schedule_given"] else []), *(["lr"] if now["lr"] is not None else [])]
    differences = [
        f"{name} is {_difference(now.get(name), saved.get(name))}" for name in names if now.get(name) != saved.get(name)
    ]
    if differences:
        hint = "; lr='keep' goes on with the run's own" if now["lr"] is not None and now["lr"] != saved["lr"] else ""
        raise CheckpointError(f"it is a checkpoint of another run: {'; '.join(differences)}{hint}")
    return [f"{name} is {now.get(name)}, was {saved.get(name)}" for name in WARNED if now.get(name) != saved.get(name)]


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    cycled: tuple[str, ...] = ("momentum", "betas") if OWN_MOMENTUM in group else ()
    if "max_momentum" in group:  # CyclicLR and OneCycleLR change it, and leave it where they end
        cycled = ("momentum", "betas", OWN_MOMENTUM)
    return {name: frozen(value) for name, value in group.items() if name not in (*_CHANGING, *cycled)}


def _difference(now: Any, saved: Any) -> str:
    """`now here, saved there`; of parameter groups what differs in the first group that differs."""
    if not (isinstance(now, list) and isinstance(saved, list)):
        return f"{now!r} here, {saved!r} there"
    if len(now) != len(saved):
        return f"{len(now)} here, {len(saved)} there"
    for index, (here, there) in enumerate(zip(now, saved, strict=True)):
        for name in {**here, **there}:
            if here.get(name) != there.get(name):
                return f"with {name} {here.get(name)!r} here, {there.get(name)!r} there, in group {index}"
    return "different"
