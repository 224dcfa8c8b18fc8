"""Where a trainer and one of its runs stand: what is counted, and what a checkpoint needs to go on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from mxtorch.checkpointing.random_state import random_state, set_random_state
from mxtorch.optim.run_schedule import RunScheduler
from mxtorch.training.data import Feed
from mxtorch.training.epoch_lengths import EpochLengths
from mxtorch.training.limits import NO_LIMITS, Limits, figure_of
from mxtorch.training.metrics import LossMeter, MetricBuffer


@dataclass
class Position:
    """What a trainer has done so far, in all its runs; the one place where steps and epochs are counted.

    Attributes:
        step: Optimizer steps taken or left out.
        epoch: Epochs that are over.
        fits: Calls of `fit`.
        skipped_steps: Steps that were left out because a number was not finite.
        broken_off: Whether the last call of `fit` was ended by an error or a signal before its run was over.
    """

    step: int = 0
    epoch: int = 0
    fits: int = 0
    skipped_steps: int = 0
    broken_off: bool = False

    def count_fit(self, *, resumes: bool) -> int:
        """The number of a call of `fit`, from 1: a new one, or that of a run that was broken off and is gone on with.

        Args:
            resumes: Whether the call is to go on from a checkpoint.
        """
        if not (resumes and self.broken_off):
            self.fits += 1
        self.broken_off = False
        return self.fits

    def state_dict(self) -> dict[str, int]:
        """The counts, without that of the runs: a checkpoint belongs to one run, which has its number."""
        return {"step": self.step, "epoch": self.epoch, "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            ValueError: A count is no integer of at least 0.
        """
        for name in ("step", "epoch", "skipped_steps"):
            value = state_dict[name]
            if type(value) is not int or value < 0:
                raise ValueError(f"its {name} is {value!r}")
            setattr(self, name, value)


# What a row of the history has in any run.
ALWAYS_IN_ROWS = frozenset(("epoch", "train/loss", "samples_per_second", "step", "learning_rate", "seconds"))


@dataclass
class Run:
    """One call of `fit`: its lengths, its data, and where it stands.

    Attributes:
        position: The counts of the trainer.
        ordinal: Which call of `fit` of its trainer it is, from 1.
        epochs: Passes over the training data.
        steps_per_epoch: Optimizer steps that are expected in the current epoch, for bars and schedules; None where the
            data have no length. The loader decides when an epoch ends.
        feed: The training data.
        validation: The sets of validation data by the prefix of their figures, as `val` or `val/<name>`.
        scheduler: The scheduler of torch or timm, if there is one.
        fingerprint: What the run was started with, which is compared when it is resumed.
        most_steps: Optimizer steps after which an epoch is cut; None where the data end it.
        limits: Where it ends before its epochs are over, and when it validates.
        lengths: The optimizer steps of each epoch of the run; None where all have as many.
        resumes: Whether it was asked to go on from a checkpoint.
        stopping: Whether it ends after the current epoch.
        ending: Whether the current epoch ends after the step just taken.
        ended: Whether its last epoch is over, as all processes have agreed.
        validated_at: The step of the last validation within an epoch.
        unvalidated: Whether the epoch has ended without a validation, for `limits.over_epochs`.
        left_best: Whether it is over, and a callback has put the weights of its best epoch into the model.
        epoch: The current epoch within this run, from 0.
        meter: The losses of this epoch so far; None between epochs.
        metrics: The training metrics of this epoch so far.
        figures: What training this epoch gave, once it is over; validation comes next.
        micro_batches: The parts in which each batch is taken, for want of memory.
        expected_figures: Names that every row of this run will have; `expects` says whether a name is possible.
        unknown_figures: Beginnings of names that are not known beforehand.
        length_differs: Whether an epoch had more or fewer steps than were expected, which was warned of.
        started: When the epoch began, on the monotonic clock, in seconds.
    """

    position: Position
    ordinal: int
    epochs: int
    steps_per_epoch: int | None
    feed: Feed
    validation: dict[str, Feed]
    scheduler: RunScheduler
    fingerprint: dict[str, Any] = field(default_factory=dict)
    most_steps: int | None = None
    limits: Limits = NO_LIMITS
    lengths: EpochLengths | None = None
    resumes: bool = False
    stopping: bool = False
    ending: bool = False
    ended: bool = False
    validated_at: int | None = None
    unvalidated: bool = False
    left_best: bool = False
    epoch: int = 0
    meter: LossMeter | None = None
    metrics: MetricBuffer | None = None
    figures: dict[str, float] | None = None
    micro_batches: int = 1
    expected_figures: frozenset[str] = ALWAYS_IN_ROWS
    unknown_figures: tuple[str, ...] = ("train/", "val/")
    length_differs: bool = False
    started: float = 0.0

    def __post_init__(self) -> None:
        self._first_epoch = self.position.epoch
        self._first_step = self.position.step
        self._started = time.perf_counter()

    @property
    def validates(self) -> bool:
        """Whether each epoch is followed by a validation."""
        return bool(self.validation)

    @property
    def epochs_done(self) -> int:
        """Epochs of this run that are over."""
        return self.position.epoch - self._first_epoch

    @property
    def complete(self) -> bool:
        """Whether the current epoch is over and in the history."""
        return self.epochs_done > self.epoch

    @property
    def steps_done(self) -> int:
        """Optimizer steps of this run, taken or left out."""
        return self.position.step - self._first_step

    @property
    def seconds(self) -> float:
        """Seconds since the run began, those before a resume included."""
        return time.perf_counter() - self._started

    @property
    def is_bounded(self) -> bool:
        """Whether anything but the data, or a callback, ends an epoch or interrupts it."""
        return self.most_steps is not None or self.limits != NO_LIMITS

    @property
    def within_epoch(self) -> bool:
        """Whether an epoch was begun and is not in the history."""
        return self.meter is not None or self.figures is not None

    @property
    def cut(self) -> bool:
        """Whether the epoch has as many steps as it may have, or was ended within."""
        return self.meter is not None and (self.ending or self._has_most_steps)

    @property
    def over(self) -> bool:
        """Whether no epoch is to come."""
        has_all_epochs = self.epochs_done >= self.epochs and not self.limits.steps_alone
        return self.stopping or has_all_epochs or self._has_all_steps or self.out_of_time

    @property
    def out_of_time(self) -> bool:
        """Whether the time of the run is over."""
        return self.limits.max_seconds is not None and self.seconds >= self.limits.max_seconds

    @property
    def _has_all_steps(self) -> bool:
        return self.limits.max_steps is not None and self.steps_done >= self.limits.max_steps

    @property
    def _has_most_steps(self) -> bool:
        """Whether the epoch has as many steps as it may have, which is the same on all processes."""
        assert self.meter is not None
        return (self.most_steps is not None and self.meter.count >= self.most_steps) or self._has_all_steps

    @property
    def validation_is_due(self) -> bool:
        """Whether a validation within the epoch comes next; one that is due at its last step is that of its end.

        The answer is the same on all processes: it leaves out what one of them may know alone, as `ending`.
        """
        if self.meter is None or self._has_most_steps:
            return False
        count, every = self.meter.count, self.limits.validation_interval(self.steps_per_epoch)
        if every is None or count == 0 or count == self.steps_per_epoch:
            return False
        if (self.steps_done if self.limits.over_epochs else count) % every:
            return False
        return self.validated_at != self.position.step

    @property
    def end_is_validated(self) -> bool:
        """Whether the end of the current epoch, whose training is over, is validated.

        Where steps are counted over epochs, it is if a validation is due then, or if the run ends.
        """
        if not self.limits.over_epochs:
            return True
        assert type(self.limits.validate_every) is int
        is_due = self.steps_done % self.limits.validate_every == 0 and self.validated_at != self.position.step
        has_all_epochs = self.epochs_done + 1 >= self.epochs and not self.limits.steps_alone
        return is_due or has_all_epochs or self.over

    def leaves_out(self, figure: str) -> bool:
        """Whether the row of the epoch that has ended can't have a figure, because it was not validated."""
        return self.unvalidated and figure.startswith("val/")

    def ended_early(self) -> str:
        """Why the run has ended before its epochs were over, in a sentence; empty where no limit ended it."""
        limits = self.limits
        if self.stopping:
            return ""
        if self._has_all_steps:
            return f"max_steps: the run has ended after {self.steps_done} steps, in epoch {self.epochs_done}"
        if limits.max_seconds is not None and (self.ending or self.epochs_done < self.epochs):
            words = f"the {limits.max_seconds:g} s are over; the run has ended after {self.steps_done} steps"
            return f"max_time: {words}, in epoch {self.epochs_done}/{self.epochs}"
        return ""

    def figure(self, monitor: str) -> str:
        """The name in the rows of a figure that is watched: with several validation sets that of the first one.

        Args:
            monitor: As `val/loss`, or with the name of a set, `val/<name>/loss`.
        """
        return figure_of(monitor, self.validation)

    def expect(self, validation: Iterable[str] | None, *, train_metrics: bool) -> None:
        """Note which figures the rows will have.

        Args:
            validation: The names of those of validation; None where they are not known.
            train_metrics: Whether there are metrics of training, whose names are not known before the first batch.
        """
        self.expected_figures = ALWAYS_IN_ROWS.union(validation or ())
        unknown = {"train/": train_metrics, "val/": validation is None and self.validates}
        self.unknown_figures = tuple(prefix for prefix, is_unknown in unknown.items() if is_unknown)

    def expects(self, figure: str) -> bool:
        """Whether the rows of this run may have a figure of this name, as far as that is known beforehand."""
        return figure in self.expected_figures or figure.startswith(self.unknown_figures)

    @property
    def epochs_to_come(self) -> int:
        """Epochs that are not over."""
        if self.over and not self.within_epoch:
            return 0
        return max(self.epochs - self.epochs_done, 1 if self.limits.steps_alone else 0)

    @property
    def steps_to_come(self) -> int | None:
        """Optimizer steps until the last epoch is over; None where the data have no length."""
        if self.epochs_to_come == 0:
            return 0
        limit = None if self.limits.max_steps is None else self.limits.max_steps - self.steps_done
        if self.steps_per_epoch is None or self.limits.steps_alone:
            return limit
        if self.lengths is None:
            to_come = self.epochs_to_come * self.steps_per_epoch
        else:
            to_come = (self.lengths.total(self.epochs) or 0) - (self.lengths.total(self.epochs_done) or 0)
        if self.meter is not None:
            to_come -= self.meter.count
        elif self.figures is not None:
            to_come -= self.steps_per_epoch
        return to_come if limit is None else min(to_come, limit)

    def begin_epoch(self) -> None:
        """Go to the next epoch and start its clock; what was loaded from a checkpoint stays."""
        self.epoch = self.epochs_done
        if self.lengths is not None:
            self.steps_per_epoch = self.lengths(self.epoch)
        if not self.within_epoch:
            self.started = time.perf_counter()

    def open_meter(self, metrics: Any) -> LossMeter:
        """The meter and the metrics of this epoch, new or as loaded."""
        if self.meter is None:
            self.meter = LossMeter(self.position.step + 1)
            self.metrics = None if metrics is None else MetricBuffer(metrics)
        return self.meter

    def end_training(self) -> dict[str, float]:
        """The figures of the epoch's training."""
        assert self.meter is not None
        if not self.cut:
            self.limits = self.limits.after_epoch(self.meter.count)
        self.figures = self.meter.finish() | ({} if self.metrics is None else self.metrics.compute("train"))
        self.meter = self.metrics = None
        self.ending = False
        return self.figures

    def end_epoch(self) -> None:
        """Count the epoch, which is in the history."""
        self.position.epoch += 1
        self.figures = None

    def pass_over(self) -> None:
        """Take no epoch: a later run was saved, so this one was over by then."""
        self.epoch, self.stopping = self.epochs, True
        self._first_epoch = self.position.epoch - self.epochs

    def state_dict(self) -> dict[str, Any]:
        """Everything about the place, between two steps."""
        training = not self.complete and self.figures is None
        return {
            "ordinal": self.ordinal,
            "fingerprint": self.fingerprint,
            "epoch": self.epochs_done,
            "steps": self.steps_done,
            "seconds": self.seconds,
            "stopping": self.stopping,
            "ending": self.ending,
            "unvalidated": self.unvalidated,
            "over_epochs": self.limits.over_epochs,
            "validated_at": self.validated_at,
            "micro_batches": self.micro_batches,
            "feed": self.feed.state_dict(within_epoch=training and self.meter is not None),
            "validation": {name: feed.state_dict(within_epoch=False) for name, feed in self.validation.items()},
            "scheduler": self.scheduler.state_dict(),
            "figures": self.figures,
            "meter": None if self.meter is None else self.meter.state_dict(),
            "metrics": None if self.metrics is None else self.metrics.state_dict(),
            "elapsed": 0.0 if self.complete else time.perf_counter() - self.started,
        }

    def load_state_dict(self, saved: dict[str, Any], metrics: Any, device: torch.device) -> None:
        """Take the place that `state_dict` gave.

        The position of the trainer must have been loaded before. Global random states are those of the place, before
        and after.

        Raises:
            ValueError: It is malformed. Other errors come of malformed parts.
        """
        counts = {"steps": 0, "validated_at": None, "seconds": 0.0, "ending": False} | saved
        wrong = [name for name in ("ordinal", "epoch", "micro_batches", "steps") if not _is_count(counts[name])]
        if wrong or not (counts["validated_at"] is None or _is_count(counts["validated_at"])):
            raise ValueError(f"the epoch is {saved['epoch']!r}, in run {saved['ordinal']!r}, step {counts['steps']!r}")
        random = random_state()
        self.scheduler.load_state_dict(saved["scheduler"])
        self.ordinal, self.position.fits = saved["ordinal"], saved["ordinal"]
        self.epoch, self._first_epoch = saved["epoch"], self.position.epoch - saved["epoch"]
        self._first_step = self.position.step - counts["steps"]
        # A run that was rolled back has been going on for longer than the checkpoint knows.
        self._started = min(self._started, time.perf_counter() - float(counts["seconds"]))
        self.validated_at = counts["validated_at"]
        self.stopping, self.micro_batches = bool(saved["stopping"]), max(saved["micro_batches"], 1)
        self.ending = self.stopping and bool(counts["ending"])  # other ends are found anew, as they may be farther now
        self.unvalidated = bool(saved.get("unvalidated", False))
        if self.limits.over_epochs is None and saved.get("over_epochs"):
            self.limits = dataclasses.replace(self.limits, over_epochs=True)
        self.fingerprint = saved["fingerprint"] | {"epochs": self.epochs}
        self.figures = None if saved["figures"] is None else {k: float(v) for k, v in saved["figures"].items()}
        self.started = time.perf_counter() - saved["elapsed"]
        self.meter = self.metrics = None
        if saved["meter"] is not None:
            self.meter = LossMeter(0)
            self.meter.load_state_dict(saved["meter"], device)
        if metrics is not None and saved["metrics"] is not None:
            self.metrics = MetricBuffer(metrics)
            self.metrics.load_state_dict(saved["metrics"])
        for name, state in (saved["validation"] or {}).items():
            if name in self.validation:
                self.validation[name].load_state_dict(state)
                set_random_state(random)
        self.feed.load_state_dict(saved["feed"])
        set_random_state(random)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
