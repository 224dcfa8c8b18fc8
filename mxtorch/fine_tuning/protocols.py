"""What fine-tuning uses of a trainer: `mxtorch.Trainer` has it, and so may any other object."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from mxtorch.optim.scheduled import ScheduledOptim
from mxtorch.schedules import Schedule

if TYPE_CHECKING:
    from mxtorch.training.history import History
    from mxtorch.lr_finder import LRFinderResult


class Engine(Protocol):
    """Where, and in what precision, a model runs."""

    device: torch.device

    def move(self, batch: Any) -> Any:
        """The batch on the device."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which forward passes run."""


class FeatureSource(Protocol):
    """What `FeatureCache` uses of a trainer.

    Attributes:
        model: The network, with frozen layers.
        progress: Whether progress is shown and notes are printed.
    """

    model: nn.Module
    progress: bool

    @property
    def engine(self) -> Engine:
        """Where the model runs."""


class FineTunable(FeatureSource, Protocol):
    """What `fine_tune` uses of a trainer.

    Attributes:
        optimizer: Its parameter groups are divided by layer during the call.
        history: The figures of every epoch.
        accumulate: Batches to an optimizer step.
    """

    optimizer: ScheduledOptim
    history: History
    accumulate: int

    def fit(
        self, train_data: Iterable[Any], val_data: Iterable[Any] | None, *, epochs: int, lr: float, schedule: Schedule
    ) -> History:
        """Train."""

    def find_lr(
        self,
        train_data: Iterable[Any],
        *,
        schedule: Schedule,
        start_lr: float = ...,
        end_lr: float = ...,
        num_steps: int = ...,
        training_steps: int | None = ...,
    ) -> LRFinderResult:
        """Find a learning rate."""
