"""One `fit` as it goes on: its lengths, its data, where it stands."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from mxtorch import state
from mxtorch.checks import check_integer, length
from mxtorch.feed import Feed
from mxtorch.meters import LossMeter
from mxtorch.metrics import MetricBuffer
from mxtorch.rates import RunScheduler


@dataclass
class RunPlan:
    """The lengths of a run and where it is: `epoch` counts from 0 within this `fit`."""

    epochs: int = 0
    steps_per_epoch: int | None = None
    validates: bool = False
    epoch: int = 0


@dataclass
class Run:
    """What a `fit` is doing, so that a checkpoint can hold it.

    Attributes:
        ordinal: Which call of `fit` of its trainer, from 1.
        plan: Its lengths, and the epoch.
        feed: The training data.
        validation: The validation data.
        scheduler: The torch scheduler, if there is one.
        settings: What it was started with, to be compared when it is resumed.
        meter: The losses of this epoch so far; None between epochs.
        metrics: The training metrics of this epoch so far.
        figures: What training this epoch gave, once it is over; validation comes next.
        started: When the epoch began, on the monotonic clock.
        complete: Whether the epoch is over and in the history.
        resumes: Whether it was told to go on from a checkpoint.
    """

    ordinal: int
    plan: RunPlan
    feed: Feed
    validation: Feed | None
    scheduler: RunScheduler
    settings: dict[str, Any] = field(default_factory=dict)
    meter: LossMeter | None = None
    metrics: MetricBuffer | None = None
    figures: dict[str, float] | None = None
    started: float = 0.0
    complete: bool = False
    resumes: bool = False

    def begin_epoch(self) -> None:
        """Go to the next epoch, and start its clock; what was loaded from a checkpoint stays."""
        self.plan.epoch, self.complete = self.epochs_done, False
        if self.meter is None and self.figures is None:
            self.started = time.perf_counter()

    @property
    def trained(self) -> bool:
        """Whether the epoch has all its steps, as one that was saved after its last."""
        return self.meter is not None and self.meter.count == self.plan.steps_per_epoch

    def open_meter(self, first_step: int, metrics: Any) -> LossMeter:
        """The meter and metrics of this epoch, begun or as loaded."""
        if self.meter is None:
            self.meter = LossMeter(first_step)
            self.metrics = None if metrics is None else MetricBuffer(metrics)
        return self.meter

    def end_training(self) -> dict[str, float]:
        """The figures of the epoch's training."""
        assert self.meter is not None
        self.figures = self.meter.finish() | ({} if self.metrics is None else self.metrics.compute("train"))
        self.meter = self.metrics = None
        return self.figures

    @property
    def validating(self) -> bool:
        """Whether the epoch is trained and not yet in the history."""
        return self.figures is not None

    def end_epoch(self) -> None:
        """The epoch is in the history."""
        self.figures = None
        self.complete = True

    @property
    def epochs_done(self) -> int:
        """Epochs that are over."""
        return self.plan.epoch + int(self.complete)

    def state_dict(self, *, stopping: bool) -> dict[str, Any]:
        """Everything about the place, between two steps."""
        training = not self.complete and self.figures is None
        scheduler = self.scheduler.scheduler
        return {
            "ordinal": self.ordinal,
            "settings": {},  # `snapshot` adds them
            "epoch": self.epochs_done,
            "stopping": stopping,
            "feed": self.feed.state_dict(within_epoch=training and self.meter is not None),
            "validation": None if self.validation is None else self.validation.state_dict(within_epoch=False),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "figures": self.figures,
            "meter": None if self.meter is None else self.meter.state_dict(),
            "metrics": None if self.metrics is None else self.metrics.state_dict(),
            "elapsed": 0.0 if self.complete else time.perf_counter() - self.started,
        }

    def load_state_dict(self, saved: dict[str, Any], metrics: Any, device: torch.device) -> None:
        """Take the place that `state_dict` gave. Global random states are those of the place, before and after.

        Raises:
            ValueError: It is malformed. Other errors come of malformed parts.
        """
        if any(type(saved[name]) is not int or saved[name] < 0 for name in ("ordinal", "epoch")):
            raise ValueError(f"the epoch is {saved['epoch']!r}, in run {saved['ordinal']!r}")
        random = state.random_state()
        if self.scheduler.scheduler is not None:
            self.scheduler.scheduler.load_state_dict(saved["scheduler"])
        self.ordinal, self.plan.epoch, self.complete = saved["ordinal"], saved["epoch"], False
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
            state.set_random_state(random)
        self.feed.load_state_dict(saved["feed"])
        state.set_random_state(random)


def steps_in_epoch(data: Any, accumulate: int, wanted: int | None) -> int | None:
    """Optimizer steps in an epoch: what the data give, or fewer if fewer are wanted; None where it isn't known."""
    batch_count = length(data)
    available = None if batch_count is None else math.ceil(batch_count / accumulate)
    if wanted is None:
        return available
    check_integer(wanted, "steps_per_epoch")
    return wanted if available is None else min(wanted, available)
