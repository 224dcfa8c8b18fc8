"""The learning rate and the schedule of one run: what `fit(lr=..., schedule=...)` puts in force."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mxtorch import schedules
from mxtorch._checks import positive_rate
from mxtorch.optim import schedule_free
from mxtorch.optim.scheduled import ScheduledOptim


@runtime_checkable
class RateSuggestion(Protocol):
    """A search for a learning rate that can say the rate for a schedule; `find_lr` returns one."""

    @property
    def status(self) -> str:
        """`"ok"` where the rate can be trusted."""

    @property
    def advice(self) -> str:
        """What the rate rests on."""

    def suggestion_for(self, schedule: Any) -> float:
        """The rate for a schedule: its constant value, or its peak. ValueError where there is none."""


class RunScheduler(NamedTuple):
    """A torch scheduler, if there is one, and when its step is due."""

    scheduler: LRScheduler | None = None
    every_step: bool = False

    def after_step(self) -> None:
        """Step a scheduler that counts optimizer steps."""
        if self.scheduler is not None and self.every_step:
            self.scheduler.step()

    def after_epoch(self, row: dict[str, float]) -> None:
        """Step a scheduler that counts epochs; ReduceLROnPlateau watches the validation loss, if there is one."""
        if self.scheduler is None or self.every_step:
            return
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(row.get("val/loss", row["train/loss"]))
        else:
            self.scheduler.step()


def set_run_schedule(
    optimizer: ScheduledOptim,
    lr: float | RateSuggestion | Literal["keep"],
    schedule: str | schedules.Schedule | Callable[[int], float] | LRScheduler | None,
    schedule_every: str | None,
    total_steps: int | None,
) -> RunScheduler:
    """Put the base rate and the schedule of a run in force.

    Args:
        optimizer: The optimizer of the run.
        lr: The base rate of its first group, or what `find_lr` returned; `"keep"` leaves the rates as they are.
        schedule: See `Trainer.fit`.
        schedule_every: For a torch scheduler, `"step"` or `"epoch"`.
        total_steps: Optimizer steps of the run; None where the data have no length.

    Raises:
        ValueError: An argument is off, or does not go with another; nothing has changed then.
    """
    if isinstance(schedule, LRScheduler):
        return _torch_scheduler(optimizer, lr, schedule, schedule_every)
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
    """The rate to set, for the use that the schedule makes of it; None to leave what there is."""
    if isinstance(lr, RateSuggestion):
        rate = lr.suggestion_for("constant" if schedule is None else schedule)
        if lr.status != "ok":
            warnings.warn(
                f"fit trains with a rate of {rate:.1e} that is no more than a guess. {lr.advice}", stacklevel=4
            )
        return rate
    if lr is None:  # what `found.suggestion` is where nothing was found: not to be taken for "as it is"
        raise ValueError(
            "lr: got None; find_lr may have found no rate (see its status). Give a rate, or 'keep' to leave the rates "
            "as they are"
        )
    return None if lr == "keep" else positive_rate(lr, "lr")


def _torch_scheduler(
    optimizer: ScheduledOptim, lr: Any, scheduler: LRScheduler, schedule_every: str | None
) -> RunScheduler:
    if lr != "keep":
        raise ValueError("lr: a torch scheduler keeps its own base rates; set them on the optimizer before making it")
    if scheduler.optimizer not in (optimizer, optimizer.optimizer):
        raise ValueError("schedule: got a scheduler of another optimizer; make it from trainer.optimizer")
    if schedule_every not in ("step", "epoch"):
        raise ValueError(
            f"schedule_every: got {schedule_every!r}; say 'step' or 'epoch', as {type(scheduler).__name__} means it"
        )
    schedule_free.warn_of_schedule(optimizer, scheduler)
    optimizer.schedule = None
    return RunScheduler(scheduler, schedule_every == "step")


def _filled(schedule: schedules.Schedule, total_steps: int | None) -> schedules.Schedule:
    if total_steps is not None:
        return schedule.for_steps(total_steps)
    try:
        schedule(0)
    except ValueError as error:
        raise ValueError(f"{error}; or give fit steps_per_epoch, as the data have no length") from error
    return schedule
