"""The learning rate and the schedule of one run: what `fit(lr=..., schedule=...)` puts in force."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mxtorch import schedules
from mxtorch._checks import closest, level_of_user, number, positive_rate
from mxtorch.optim import schedule_free
from mxtorch.optim.external_scheduler import ExternalScheduler, TimmScheduler, loaded, mode_of, settings, state_of
from mxtorch.optim.scheduled import ScheduledOptim

# A schedule that ends below this part of the base rate trains nothing after its end.
LOWEST_USEFUL_END = 0.01


@runtime_checkable
class RateSuggestion(Protocol):
    """The result of a search for a learning rate, which has a rate for each schedule; `find_lr` returns one."""

    @property
    def status(self) -> str:
        """`"ok"` where the rate can be trusted."""

    @property
    def advice(self) -> str:
        """What the rate is based on, and what would make it more certain."""

    def suggestion_for(self, schedule: Any) -> float:
        """The rate for a schedule: its constant value, or its peak. It raises ValueError if no rate was found."""


@dataclass
class RunScheduler:
    """The scheduler of torch or timm of a run, if there is one, and when its step is due.

    Attributes:
        scheduler: The scheduler; None for a run with a schedule of mxtorch, or without a schedule.
        every_step: Whether the scheduler counts optimizer steps; otherwise it counts epochs.
        monitor: The figure of the epoch that the scheduler watches; None means the validation loss, or the training
            loss in a run without validation.
        updates: The number of optimizer steps for a scheduler of timm, which has no counter.
        epochs: The number of epochs, likewise.
    """

    scheduler: ExternalScheduler | None = None
    every_step: bool = False
    monitor: str | None = None
    updates: int = 0
    epochs: int = 0

    def after_step(self) -> None:
        """Step a scheduler that counts optimizer steps."""
        if isinstance(self.scheduler, LRScheduler):
            self.scheduler.step()
        elif self.scheduler is not None:
            self.updates += 1
            self.scheduler.step_update(self.updates)

    def after_epoch(self, row: dict[str, float], loss: str = "val/loss") -> None:
        """Step a scheduler that counts epochs; a scheduler that watches a figure gets the value of this epoch.

        Args:
            row: The figures of the epoch.
            loss: The name of the validation loss, which is watched by default. If the row does not have it, the
                training loss is watched.

        Raises:
            ValueError: The row does not have the figure that is watched.
        """
        scheduler = self.scheduler
        if scheduler is None:
            return
        if not isinstance(scheduler, LRScheduler):
            self.epochs += 1
            scheduler.step(self.epochs, self._figure(row, loss))
        elif not self.every_step:
            step: Callable[..., None] = scheduler.step
            step(*([] if mode_of(scheduler) is None else [self._figure(row, loss)]))

    def described(self) -> str:
        """The scheduler with its settings and without its position, to be compared when a run is resumed."""
        assert self.scheduler is not None
        watched = "" if mode_of(self.scheduler) is None else f", watching {self.monitor or 'the loss'}"
        return f"{settings(self.scheduler)}, stepped each {'step' if self.every_step else 'epoch'}{watched}"

    def state_dict(self) -> dict[str, Any] | None:
        """The scheduler's state and the counts; None where there is no scheduler."""
        if self.scheduler is None:
            return None
        return {"scheduler": state_of(self.scheduler), "updates": self.updates, "epochs": self.epochs}

    def load_state_dict(self, saved: dict[str, Any] | None) -> None:
        """Restore the state that `state_dict` returned.

        Raises:
            ValueError: A count is malformed. Schedulers raise their own errors for a state of another scheduler.
        """
        if self.scheduler is None or saved is None:
            return
        if any(type(saved[name]) is not int or saved[name] < 0 for name in ("updates", "epochs")):
            raise ValueError(f"the scheduler's counts are {saved['updates']!r} and {saved['epochs']!r}")
        loaded(self.scheduler, saved["scheduler"])
        self.updates, self.epochs = saved["updates"], saved["epochs"]

    def _figure(self, row: dict[str, float], loss: str) -> float:
        if self.monitor is None:
            return row.get(loss, row["train/loss"])
        if self.monitor not in row:
            hint = closest(self.monitor, [name for name in row if "/" in name])
            raise ValueError(f"schedule_monitor: got {self.monitor!r}, which no epoch has{hint}")
        return row[self.monitor]


def set_run_schedule(
    optimizer: ScheduledOptim,
    lr: float | RateSuggestion | Literal["keep"],
    schedule: str | schedules.Schedule | Callable[[int], float] | ExternalScheduler | None,
    schedule_every: str | None,
    total_steps: int | None,
    monitor: str | None = None,
) -> RunScheduler:
    """Put the base rate and the schedule of a run in force.

    Args:
        optimizer: The optimizer of the run.
        lr: The base rate of the first group, or the result of `find_lr` for this optimizer; `"keep"` leaves the rates
            as they are.
        schedule: See `Trainer.fit`.
        schedule_every: For a torch scheduler, `"step"` or `"epoch"`.
        total_steps: Optimizer steps of the run; None where the data have no length.
        monitor: The figure of the epochs that a scheduler watches; None for the loss.

    Raises:
        ValueError: An argument is wrong, or contradicts another one; nothing has changed then.
    """
    if monitor is not None and mode_of(schedule) is None:
        raise ValueError(
            f"schedule_monitor: got {monitor!r}, and schedule is no scheduler that watches a figure, such as "
            "torch.optim.lr_scheduler.ReduceLROnPlateau"
        )
    if not isinstance(schedule, TimmScheduler):
        check_layer_scales(optimizer)
    if isinstance(schedule, (LRScheduler, TimmScheduler)):
        return _external_scheduler(optimizer, lr, schedule, schedule_every, monitor)
    if schedule_every is not None:
        raise ValueError("schedule_every: only for torch.optim.lr_scheduler; other schedules count steps")
    if isinstance(schedule, (str, schedules.Schedule)):
        schedule = _filled(schedules.get(schedule), total_steps)
    rate = _base_rate(lr, optimizer.schedule if schedule is None else schedule)
    if schedule is not None:
        optimizer.schedule = None
        optimizer.current_steps = 0
    if rate is not None:
        optimizer.set_learning_rate(rate)
    if schedule is not None:
        optimizer.schedule = schedule
    return RunScheduler()


def _base_rate(lr: float | RateSuggestion | Literal["keep"], schedule: Any) -> float | None:
    """The base rate to set for this schedule; None if the rates stay as they are."""
    if isinstance(lr, RateSuggestion):
        name = getattr(lr, "optimizer_name", None)
        if name is not None:
            raise ValueError(
                f"lr: got the rate that was found for the optimizer {name!r} of other_optimizers, and fit sets that of "
                f"the trainer's own; set it by trainer.other_optimizers[{name!r}].set_learning_rate(found.suggestion)"
            )
        rate = lr.suggestion_for("constant" if schedule is None else schedule)
        if lr.status != "ok":
            warnings.warn(
                f"fit trains with a rate of {rate:.1e} that is no more than a guess. {lr.advice}",
                stacklevel=level_of_user(),
            )
        return rate
    if lr is None:  # what `found.suggestion` is where nothing was found: not to be taken for "as it is"
        raise ValueError(
            "lr: got None; find_lr may have found no rate (see its status). Give a rate, or 'keep' to leave the rates "
            "as they are"
        )
    if isinstance(lr, str) and lr == "keep":
        return None
    if number(lr) is None and not isinstance(lr, (slice, tuple, list, Mapping)):  # of several rates the next line tells
        raise TypeError(f"lr: got {lr!r}; give a finite positive number, what find_lr returned, or 'keep'")
    return positive_rate(lr, "lr")


def _external_scheduler(
    optimizer: ScheduledOptim, lr: Any, scheduler: ExternalScheduler, schedule_every: str | None, monitor: str | None
) -> RunScheduler:
    kind = type(scheduler).__name__
    if lr != "keep":
        raise ValueError(f"lr: {kind} keeps its own base rates; set them on the optimizer before making it")
    if scheduler.optimizer not in (optimizer, optimizer.optimizer):
        raise ValueError("schedule: got a scheduler of another optimizer; make it from trainer.optimizer")
    watches = mode_of(scheduler) is not None
    if not isinstance(scheduler, LRScheduler):
        own = "epoch" if scheduler.t_in_epochs else "step"
        if schedule_every not in (None, own):
            raise ValueError(
                f"schedule_every: got {schedule_every!r}; {kind} was made to count each {own}: leave it out"
            )
        schedule_every = own
    elif watches:
        if schedule_every not in (None, "epoch"):
            raise ValueError(
                f"schedule_every: got {schedule_every!r}; {kind} watches a figure of the epoch: give 'epoch'"
            )
        schedule_every = "epoch"
    if schedule_every not in ("step", "epoch"):
        raise ValueError(f"schedule_every: got {schedule_every!r}; say 'step' or 'epoch', as {kind} means it")
    schedule_free.warn_of_schedule(optimizer, scheduler)
    optimizer.schedule = None
    return RunScheduler(scheduler, schedule_every == "step", monitor)


def check_layer_scales(optimizer: Optimizer) -> None:
    """Raise if groups have an `lr_scale` of timm that their rates do not include: only timm's schedulers apply it.

    Raises:
        ValueError: The rates of two groups are not in the proportion of their `lr_scale`.
    """
    groups = optimizer.param_groups
    if not any("lr_scale" in group for group in groups):
        return
    scales = [float(group.get("lr_scale", 1.0)) for group in groups]
    rates = [float(group.get("base_lr", group["lr"])) for group in groups]
    top = max(range(len(groups)), key=lambda index: scales[index])
    if any(
        not math.isclose(rate * scales[top], rates[top] * scale, rel_tol=1e-6)
        for rate, scale in zip(rates, scales, strict=True)
    ):
        raise ValueError(
            "optimizer: its parameter groups have an lr_scale, by which the schedulers of timm multiply their rates. "
            "Nothing else does; put it into the rates before you make the Trainer: for group in "
            "optimizer.param_groups: group['lr'] *= group.pop('lr_scale')"
        )


def check_end(optimizer: ScheduledOptim, scheduler: RunScheduler, steps: int | None, epochs: int) -> None:
    """Warn if a run continues after the end of its schedule, at a rate that trains nothing, or that rises again.

    Args:
        optimizer: The optimizer with its schedule, at the position of the run.
        scheduler: The scheduler of torch or timm, if there is one.
        steps: The optimizer steps that remain in the run; None if the data have no length.
        epochs: The epochs that remain in the run.

    Raises:
        ValueError: The scheduler is a OneCycleLR, which raises an error after its end.
    """
    if not epochs:
        return
    schedule = optimizer.schedule
    external = scheduler.scheduler
    if external is None:
        end = getattr(schedule, "total_steps", None) if isinstance(schedule, schedules.Schedule) else None
        position, to_come = optimizer.current_steps, steps
        if end is None or schedule is None or schedule(end) >= LOWEST_USEFUL_END:
            return
        after = f"a rate of {optimizer.base_learning_rate * schedule(end):.2g}"
        named, unit = repr(schedule), "step"
    else:
        ends = {"OneCycleLR": "total_steps", "CosineAnnealingLR": "T_max", "PolynomialLR": "total_iters"}
        end = getattr(external, ends.get(type(external).__name__, ""), None)
        if end is None:
            return
        position, to_come = getattr(external, "last_epoch", 0), steps if scheduler.every_step else epochs
        named, unit = type(external).__name__, "step" if scheduler.every_step else "epoch"
        after = "a rate that rises again" if named == "CosineAnnealingLR" else "a rate of 0"
    if position < end if to_come is None else position + to_come <= end:
        return
    last = "" if to_come is None else f" to {unit} {position + to_come}"
    beyond = f"The schedule {named} ends at {unit} {end}, and this run goes on{last}"
    remedy = "give fit a schedule for all of the run"
    if type(external).__name__ == "OneCycleLR":
        raise ValueError(f"schedule: {beyond[0].lower() + beyond[1:]}, where it fails; {remedy}")
    warnings.warn(f"{beyond}, at {after}; {remedy}.", stacklevel=level_of_user())


def _filled(schedule: schedules.Schedule, total_steps: int | None) -> schedules.Schedule:
    if total_steps is not None:
        return schedule.for_steps(total_steps)
    try:
        schedule(0)
    except ValueError as error:
        raise ValueError(f"{error}; or give fit steps_per_epoch, as the data have no length") from error
    return schedule
