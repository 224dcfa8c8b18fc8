"""Where a trainer and one of its runs stand: what is counted, and what a checkpoint needs to go on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from mxtorch._checks import check_integer, length
from mxtorch.checkpointing.random_state import random_state, set_random_state
from mxtorch.optim.run_schedule import RunScheduler
from mxtorch.training.data import Feed
from mxtorch.training.metrics import LossMeter, MetricBuffer


@dataclass
class Position:
    """What a trainer has done so far, in all its runs; the one place where steps and epochs are counted.

    Attributes:
        step: Optimizer steps taken or left out.
        epoch: Epochs that are over.
        fits: Calls of `fit`.
        skipped_steps: Steps that were left out because a number was not finite.
    """

    step: int = 0
    epoch: int = 0
    fits: int = 0
    skipped_steps: int = 0

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
        steps_per_epoch: Optimizer steps that are expected in an epoch, for bars and schedules; None where the data have
            no length. The loader decides when an epoch ends.
        feed: The training data.
        validation: The validation data, or None.
        scheduler: The scheduler of torch or timm, if there is one.
        fingerprint: What the run was started with, which is compared when it is resumed.
        most_steps: Optimizer steps after which an epoch is cut; None where the data end it.
        resumes: Whether it was asked to go on from a checkpoint.
        stopping: Whether it ends after the current epoch.
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
    validation: Feed | None
    scheduler: RunScheduler
    fingerprint: dict[str, Any] = field(default_factory=dict)
    most_steps: int | None = None
    resumes: bool = False
    stopping: bool = False
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

    @property
    def validates(self) -> bool:
        """Whether each epoch is followed by a validation."""
        return self.validation is not None

    @property
    def epochs_done(self) -> int:
        """Epochs of this run that are over."""
        return self.position.epoch - self._first_epoch

    @property
    def complete(self) -> bool:
        """Whether the current epoch is over and in the history."""
        return self.epochs_done > self.epoch

    @property
    def cut(self) -> bool:
        """Whether the epoch has as many steps as it may have."""
        return self.most_steps is not None and self.meter is not None and self.meter.count >= self.most_steps

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
        return 0 if self.stopping else max(self.epochs - self.epochs_done, 0)

    @property
    def steps_to_come(self) -> int | None:
        """Optimizer steps until the last epoch is over; None where the data have no length."""
        if self.steps_per_epoch is None:
            return None
        taken = self.meter.count if self.meter is not None else self.steps_per_epoch if self.figures is not None else 0
        return self.epochs_to_come * self.steps_per_epoch - taken

    def begin_epoch(self) -> None:
        """Go to the next epoch and start its clock; what was loaded from a checkpoint stays."""
        self.epoch = self.epochs_done
        if self.meter is None and self.figures is None:
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
        self.figures = self.meter.finish() | ({} if self.metrics is None else self.metrics.compute("train"))
        self.meter = self.metrics = None
        return self.figures

    def end_epoch(self) -> None:
        """Count the epoch, which is in the history."""
        self.position.epoch += 1
        self.figures = None

    def pass_over(self) -> None:
        """Take no epoch: a later run was saved, so this one was over by then."""
        self.epoch = self.epochs
        self._first_epoch = self.position.epoch - self.epochs

    def state_dict(self) -> dict[str, Any]:
        """Everything about the place, between two steps."""
        training = not self.complete and self.figures is None
        return {
            "ordinal": self.ordinal,
            "fingerprint": self.fingerprint,
            "epoch": self.epochs_done,
            "stopping": self.stopping,
            "micro_batches": self.micro_batches,
            "feed": self.feed.state_dict(within_epoch=training and self.meter is not None),
            "validation": None if self.validation is None else self.validation.state_dict(within_epoch=False),
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
        if any(type(saved[name]) is not int or saved[name] < 0 for name in ("ordinal", "epoch", "micro_batches")):
            raise ValueError(f"the epoch is {saved['epoch']!r}, in run {saved['ordinal']!r}")
        random = random_state()
        self.scheduler.load_state_dict(saved["scheduler"])
        self.ordinal, self.position.fits = saved["ordinal"], saved["ordinal"]
        self.epoch, self._first_epoch = saved["epoch"], self.position.epoch - saved["epoch"]
        self.stopping, self.micro_batches = bool(saved["stopping"]), max(saved["micro_batches"], 1)
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
        if self.validation is not None and saved["validation"] is not None:
            self.validation.load_state_dict(saved["validation"])
            set_random_state(random)
        self.feed.load_state_dict(saved["feed"])
        set_random_state(random)


def steps_in_epoch(data: Any, accumulate: int, wanted: int | None) -> int | None:
    """Optimizer steps in an epoch: what the data give, or fewer if fewer are wanted; None where it isn't known."""
    batch_count = length(data)
    available = None if batch_count is None else math.ceil(batch_count / accumulate)
    if wanted is None:
        return available
    wanted = check_integer(wanted, "steps_per_epoch")
    return wanted if available is None else min(wanted, available)
