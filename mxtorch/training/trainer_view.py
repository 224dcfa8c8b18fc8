"""What callbacks, and what is built on a trainer, may use of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from mxtorch.engines.base import Engine
from mxtorch.optim.scheduled import ScheduledOptim
from mxtorch.training.history import History
from mxtorch.training.run import Run
from mxtorch.training.step import StepSettings


class TrainerView(Protocol):
    """The public face of `mxtorch.Trainer`, for code that must not import it.

    Attributes:
        model: The module that is trained.
        loss: The loss function, or None.
        optimizer: Its optimizer.
        other_optimizers: Further optimizers by name.
        engine: Where the model runs.
        metrics: The metrics of validation, a `torchmetrics.MetricCollection`, or None.
        train_metrics: The metrics of training, likewise.
        history: The figures so far.
        log_dir: The folder for logs, or None.
        settings: How a step is taken.
        progress: Whether bars are shown and notes are printed.
        run: Where the current or the last `fit` stands; None before the first.
        fine_tuning: What the last `fine_tune` did; None before.
        step: Optimizer steps taken, of all runs.
        epoch: Epochs that are over, of all runs.
        fit: `Trainer.fit`.
        find_lr: `Trainer.find_lr`.
    """

    model: nn.Module
    loss: Callable[..., Any] | None
    optimizer: ScheduledOptim
    other_optimizers: dict[str, ScheduledOptim]
    engine: Engine
    metrics: Any
    train_metrics: Any
    history: History
    log_dir: str | Path | None
    settings: StepSettings
    progress: bool
    run: Run | None
    fine_tuning: Any

    @property
    def step(self) -> int: ...  # noqa: D102
    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def fit(self) -> Callable[..., History]: ...  # noqa: D102
    @property
    def find_lr(self) -> Callable[..., Any]: ...  # noqa: D102

    def predict(self, data: Iterable[Any]) -> Any:
        """The outputs for all batches, on the CPU, in evaluation mode."""

    def prediction_step(self, batch: Any) -> Any:
        """The outputs for one batch on the device."""

    def judged_weights(self) -> AbstractContextManager[Mapping[str, Any]]:
        """In a `with` block the model has the weights that are judged, in place of those that are trained."""

    def stop(self, *, within_epoch: bool = False) -> None:
        """End the run after the current epoch, or after the current step."""

    def checkpoint_content(self) -> dict[str, Any]:
        """Everything that a checkpoint holds, copied."""
