"""How a run finds a checkpoint and continues from it: `fit(resume=...)`, and the rollback after a bad number."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mxtorch import schedules
from mxtorch._checks import length, level_of_user, local_path
from mxtorch.checkpointing.file import CheckpointError
from mxtorch.checkpointing.serialization import frozen
from mxtorch.data.sharding import batch_size_of_all
from mxtorch.optim.external_scheduler import described_function, is_external
from mxtorch.optim.momentum import OWN as OWN_MOMENTUM
from mxtorch.optim.run_schedule import RunScheduler
from mxtorch.optim.scheduled import ScheduledOptim

# The largest number of rollbacks, each of which halves the rate. If a run needs more, the rate is not the cause.
MOST_ROLLBACKS = 5
# If one of these settings has changed, the checkpoint is from another run and is refused.
REFUSED = ("optimizer", "parameter groups", "precision", "accumulate", "batches", "batch_size", "samples")
# If one of these settings has changed, the run continues with a warning, because its numbers may differ.
WARNED = (
    *("clip_grad_norm", "num_workers", "prefetch_factor", "persistent_workers", "device", "validation"),
    *("validate_every", "val_batches"),
)
# Settings of a parameter group that a schedule or a user changes during a run.
_CHANGING = (
    *("params", "param_names", "lr", "base_lr", "initial_lr", "schedule_position"),
    *("max_lr", "min_lr", "max_momentum", "base_momentum"),
)


class CheckpointFolder(Protocol):
    """A folder of checkpoints; the callback `Checkpoint` is one."""

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The path and the content of the newest undamaged checkpoint; None if there is none."""


def check_arguments(checkpoints: Sequence[CheckpointFolder], resume: Any, on_nonfinite: str, schedule: Any) -> None:
    """Raise if an argument of `fit` needs a `Checkpoint` callback, or contradicts another argument."""
    if resume is not None and not isinstance(resume, (str, os.PathLike)):
        raise TypeError(f"resume: got {resume!r}; give the path of a checkpoint, or 'auto'")
    if resume == "auto" and not checkpoints:
        raise ValueError("resume: got 'auto', but no callback is a Checkpoint; add one to the Trainer's callbacks")
    if resume is not None and resume != "auto" and not local_path(resume, "resume").exists():
        raise FileNotFoundError(f"resume: there is no file {str(resume)!r}; 'auto' takes the newest checkpoint")
    if on_nonfinite == "rollback":
        if not checkpoints:
            raise ValueError("on_nonfinite: 'rollback' needs a Checkpoint among the Trainer's callbacks")
        if is_external(schedule):
            raise ValueError(
                f"on_nonfinite: 'rollback' halves the base rate, but {type(schedule).__name__} sets its own rate; give "
                "'raise' or 'skip', or a schedule of mxtorch.schedules"
            )


def newest_of(checkpoints: Sequence[CheckpointFolder]) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint with the highest step in several folders; None if there is none."""
    found = [newest for one in checkpoints if (newest := one.newest()) is not None]
    return max(found, key=lambda entry: entry[1]["position"]["step"], default=None)


def place_in(saved: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The position in a run that a checkpoint holds.

    Raises:
        CheckpointError: The checkpoint holds none, or the position is malformed.
    """
    place = saved["run"]
    if place is None:
        raise CheckpointError(
            f"{path} was saved between two runs, so there is no run to resume; load it with trainer.load(path), then "
            "call fit without resume"
        )
    fingerprint = place.get("fingerprint") if isinstance(place, dict) else None
    if not isinstance(fingerprint, dict) or type(place.get("ordinal")) is not int:
        raise CheckpointError(f"{path} is damaged: its position in the run is malformed")
    found: dict[str, Any] = place
    return found


def ordinal_of(saved: dict[str, Any], path: str | Path) -> int:
    """Which call of `fit` saved a checkpoint, from 1; 0 where it was saved between two calls.

    Raises:
        CheckpointError: The position in the run is malformed.
    """
    if saved["run"] is None:
        return 0
    ordinal: int = place_in(saved, path)["ordinal"]
    return ordinal


class Rollback:
    """Takes a run back to its last checkpoint and halves the rate, after a loss or gradient that is not finite.

    Args:
        checkpoints: The folders in which the run saves.
        load: Called as `load(saved, path)` with the content of a checkpoint.
        optimizer: The optimizer whose base rate is halved.
        position: The counter of steps, as `step`; `load` sets it.
        run: The run, which knows its number as `ordinal`. Only checkpoints of this run are loaded: one of an earlier
            call of `fit` would end the run where that call ended.
    """

    def __init__(
        self,
        checkpoints: Sequence[CheckpointFolder],
        load: Callable[[dict[str, Any], Path], None],
        optimizer: ScheduledOptim,
        position: Any,
        run: Any,
    ) -> None:
        self._checkpoints, self._load, self._optimizer = checkpoints, load, optimizer
        self._position, self._run = position, run
        self._times: Counter[int] = Counter()

    def __call__(self, error: FloatingPointError) -> None:
        """Load the newest checkpoint and halve the base rate, once for each time that this checkpoint was loaded.

        Raises:
            FloatingPointError: There is no checkpoint of this run yet, or there were too many rollbacks.
        """
        if self._times.total() >= MOST_ROLLBACKS:
            raise FloatingPointError(f"{error}. The run was rolled back {MOST_ROLLBACKS} times already") from error
        found = newest_of(self._checkpoints)
        if found is None or ordinal_of(found[1], found[0]) != self._run.ordinal:
            raise FloatingPointError(
                f"{error}. There is no checkpoint of this run yet to which it could be rolled back; let Checkpoint "
                "save sooner (every=), or give a lower rate"
            ) from error
        path, saved = found
        self._load(saved, path)
        self._times[self._position.step] += 1
        factor = 0.5 ** self._times[self._position.step]
        self._optimizer.scale_learning_rate(factor)
        warnings.warn(f"{error}. Rolled back to {path}, with the rate times {factor:g}.", stacklevel=level_of_user())


def fingerprint_of(
    optimizer: ScheduledOptim,
    data: Any,
    *,
    scheduler: RunScheduler,
    lr: Any,
    given_schedule: Any,
    **settings: Any,
) -> dict[str, Any]:
    """The settings of a run as plain values, which `compare` compares and names.

    Args:
        optimizer: The optimizer with its schedule.
        data: The training data.
        scheduler: The scheduler of the run; it may hold a scheduler of torch or timm.
        lr: The argument `lr` of `fit`.
        given_schedule: The argument `schedule` of `fit`.
        settings: Further plain values.
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
        "batch_size": batch_size_of_all(data),
        "samples": length(data.dataset) if hasattr(data, "dataset") else None,
        "num_workers": getattr(data, "num_workers", None),
        "prefetch_factor": getattr(data, "prefetch_factor", None),
        "persistent_workers": getattr(data, "persistent_workers", None),
        **settings,
    }


def compare(now: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """The settings in which a run differs from the saved run, in words.

    Raises:
        CheckpointError: The checkpoint is from another run.
    """
    if saved.get("scheduler") and not now["schedule_given"]:
        raise CheckpointError(
            f"the saved run had the schedule {saved.get('schedule')!r}, but fit got none; give fit that schedule"
        )
    # The same script on another number of processes: its batches are of another size, and it goes on all the same.
    refused = [name for name in REFUSED if name not in ("batches", "batch_size") or _same_processes(now, saved)]
    schedule = ["schedule"] if now["schedule_given"] and _same_length(now, saved) else []
    names = [*refused, *schedule, *(["lr"] if now["lr"] is not None else [])]
    differences = [
        f"{name} is {_difference(now.get(name), saved.get(name))}" for name in names if now.get(name) != saved.get(name)
    ]
    if differences:
        hint = "; lr='keep' keeps the rate of the run" if now["lr"] is not None and now["lr"] != saved["lr"] else ""
        raise CheckpointError(f"it is a checkpoint of another run: {'; '.join(differences)}{hint}")
    return [f"{name} is {now.get(name)}, was {saved.get(name)}" for name in WARNED if now.get(name) != saved.get(name)]


def _same_length(now: dict[str, Any], saved: dict[str, Any]) -> bool:
    """Whether a schedule whose length comes from the data must be the same: steps of other sizes make it another."""
    return _same_processes(now, saved) or bool(now["batch_size"] == saved.get("batch_size"))


def _same_processes(now: dict[str, Any], saved: dict[str, Any]) -> bool:
    return bool(now.get("processes", 1) == saved.get("processes", 1))


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    cycled: tuple[str, ...] = ("momentum", "betas") if OWN_MOMENTUM in group else ()
    if "max_momentum" in group:  # CyclicLR and OneCycleLR change these values and do not restore them
        cycled = ("momentum", "betas", OWN_MOMENTUM)
    return {name: frozen(value) for name, value in group.items() if name not in (*_CHANGING, *cycled)}


def _difference(now: Any, saved: Any) -> str:
    """The text `now here, saved there`; for parameter groups, the first difference in the first group that differs."""
    if not (isinstance(now, list) and isinstance(saved, list)):
        return f"{now!r} here, {saved!r} there"
    if len(now) != len(saved):
        return f"{len(now)} here, {len(saved)} there"
    for index, (here, there) in enumerate(zip(now, saved, strict=True)):
        for name in {**here, **there}:
            if here.get(name) != there.get(name):
                return f"with {name} {here.get(name)!r} here, {there.get(name)!r} there, in group {index}"
    return "different"
