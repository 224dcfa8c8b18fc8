"""How a run finds its checkpoint and goes on from it: when it is resumed, and when its numbers went bad."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LRScheduler

from mxtorch import portable, schedules, snapshot
from mxtorch.callbacks.checkpoint import Checkpoint
from mxtorch.checks import length
from mxtorch.run import Run

if TYPE_CHECKING:
    from mxtorch.trainer import Trainer

# Halvings of the rate: after so many a run is not mended by a lower one.
MOST_ROLLBACKS = 5


def check_arguments(callbacks: Iterable[Any], resume: Any, on_nonfinite: str, schedule: Any) -> list[Checkpoint]:
    """The Checkpoint callbacks; raise where an argument of `fit` needs one, or can't go with another."""
    checkpoints = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    if resume is not None and not isinstance(resume, (str, os.PathLike)):
        raise TypeError(f"resume: got {resume!r}; give the path of a checkpoint, or 'auto'")
    if resume == "auto" and not checkpoints:
        raise ValueError("resume: got 'auto', but no callback is a Checkpoint; add one to the Trainer's callbacks")
    if resume is not None and resume != "auto" and not Path(resume).is_file():
        raise FileNotFoundError(f"resume: there is no file {str(resume)!r}; 'auto' takes the newest that there is")
    if on_nonfinite == "rollback":
        if not checkpoints:
            raise ValueError("on_nonfinite: 'rollback' needs a Checkpoint among the Trainer's callbacks")
        if isinstance(schedule, LRScheduler):
            raise ValueError("on_nonfinite: 'rollback' halves the base rate, which a torch scheduler keeps to itself")
    return checkpoints


def go_on(trainer: Trainer, run: Run, resume: str | Path, checkpoints: list[Checkpoint]) -> None:
    """Take the run to where its checkpoint was written.

    Raises:
        CheckpointError: It is damaged, or of another run; nothing has changed then.
    """
    if resume != "auto":
        path, saved = Path(resume), snapshot.read(resume)
    else:
        newest = max(
            (found for one in checkpoints if (found := one.newest()) is not None),
            key=lambda found: found[1]["step"],
            default=None,
        )
        if newest is None:
            return
        path, saved = newest
        ordinal = 0 if saved["run"] is None else saved["run"]["ordinal"]
        if ordinal < run.ordinal:  # of an earlier call of fit, which is over: this one had not begun to save
            return
        if ordinal > run.ordinal:  # of a later call, which will load it
            run.plan.epoch = run.plan.epochs
            return
    snapshot.resume(trainer, run, saved, path)
    trainer.fits = run.ordinal
    if trainer.progress:
        print(f"resumed from {path}: step {trainer.step}, epoch {run.plan.epoch + 1}/{run.plan.epochs}")


class Rollback:
    """Takes a run whose numbers went bad back to its last checkpoint, with half the rate."""

    def __init__(self, checkpoints: list[Checkpoint]) -> None:
        self._checkpoints = checkpoints
        self._times: Counter[int] = Counter()

    def go_back(self, trainer: Trainer, run: Run, error: FloatingPointError) -> None:
        """Load the newest checkpoint and halve the base rate, once more for each time it was loaded.

        Raises:
            FloatingPointError: There is none yet, or the rate was halved too often.
        """
        found = self._checkpoints[0].newest()
        if found is None or self._times.total() >= MOST_ROLLBACKS:
            raise error
        path, saved = found
        snapshot.resume(trainer, run, saved, path)
        self._times[trainer.step] += 1
        factor = 0.5 ** self._times[trainer.step]
        trainer.optimizer.scale_learning_rate(factor)
        warnings.warn(f"{error}. Rolled back to {path}, with the rate times {factor:g}.", stacklevel=3)


def settings_of(trainer: Trainer, run: Run, lr: Any, given_schedule: Any) -> dict[str, Any]:
    """What a run was started with, as plain values to be compared and named."""
    data, optimizer = run.feed.data, trainer.optimizer
    torch_scheduler, schedule = run.scheduler.scheduler, optimizer.schedule
    if torch_scheduler is not None:
        named = type(torch_scheduler).__name__
    elif schedules.is_savable(schedule):
        named = repr(schedule)
    else:
        named = "none" if schedule is None else "a function"
    return {
        "optimizer": type(optimizer.optimizer).__name__,
        "parameter groups": [_hyperparameters(group) for group in optimizer.param_groups],
        "schedule": named,
        "schedule_given": given_schedule is not None,
        "lr": float(lr) if type(lr) in (int, float) else None,
        "precision": trainer.engine.precision,
        "accumulate": trainer.accumulate,
        "batches": length(data),
        "batch_size": getattr(data, "batch_size", None),
        "samples": _samples(data),
        "steps_per_epoch": run.plan.steps_per_epoch,
        "epochs": run.plan.epochs,
        "validation": run.validation is not None,
        "clip_grad_norm": trainer.clip_grad_norm,
        "num_workers": getattr(data, "num_workers", None),
        "prefetch_factor": getattr(data, "prefetch_factor", None),
        "persistent_workers": getattr(data, "persistent_workers", None),
        "device": trainer.engine.device.type,
    }


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    rates = (
        "params",
        "lr",
        "base_lr",
        "initial_lr",
        "param_names",
        "max_lr",
        "min_lr",
        "max_momentum",
        "base_momentum",
    )
    return {name: portable.frozen(value) for name, value in group.items() if name not in rates}


def _samples(data: Any) -> int | None:
    return length(data.dataset) if hasattr(data, "dataset") else None
