"""What a trainer is made of, where it stands, and its files. `mxtorch.Trainer` adds what trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mxtorch.checkpointing.serialization import Attributes
from mxtorch.engines.base import Engine
from mxtorch.optim.scheduled import ScheduledOptim
from mxtorch.training.agreement import on_all_processes
from mxtorch.training.callback import CallbackList
from mxtorch.training.context import Context
from mxtorch.training.history import History
from mxtorch.training.run import Position, Run
from mxtorch.training.saving import Saving
from mxtorch.training.step import StepSettings
from mxtorch.training.supervised import SupervisedSteps


class TrainerState(SupervisedSteps):
    """The parts of a trainer, which are checked and prepared, and its counts.

    Args:
        model: The module that is trained, on its device.
        loss: The loss function, or None.
        optimizer: Takes the steps.
        other_optimizers: Optimizers by name that `training_step` steps itself.
        engine: Where the steps run.
        settings: How a step is taken.
        callbacks: Called at each event.
        metrics: The metrics of validation, a `torchmetrics.MetricCollection`, or None.
        train_metrics: The metrics of training, likewise.

    Attributes:
        run: The current or the last `fit`; None before the first.
        history: The figures of all runs.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor] | None,
        optimizer: ScheduledOptim,
        other_optimizers: dict[str, ScheduledOptim],
        engine: Engine,
        settings: StepSettings,
        callbacks: CallbackList,
        metrics: Any,
        train_metrics: Any,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.other_optimizers = other_optimizers
        self.engine = engine
        self.metrics = None if metrics is None else metrics.to(engine.device)
        self.train_metrics = None if train_metrics is None else train_metrics.to(engine.device)
        self.settings = settings
        self.callbacks = callbacks
        self.history = History()
        self.run: Run | None = None
        self._position = Position()
        modules = {"model": model} | ({"loss": loss} if isinstance(loss, nn.Module) else {})
        self._attributes = Attributes(modules)

    # ---------------------------------------------------------------- files

    @on_all_processes
    def save(self, path: str | Path) -> None:
        """Write model, optimizer, schedule, scaler, history, callbacks and random states into one file, atomically.

        If a callback calls it within `fit`, the position in the run is saved too, and `fit(resume=path)` continues.

        Raises:
            OSError: The file can't be written; an older file at `path` is untouched.
        """
        self._saving.write(path, self.run)

    @on_all_processes
    def load(self, path: str | Path) -> None:
        """Restore what `save` wrote; the next `fit` is a new run.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: A ValueError: the file is no checkpoint, is damaged, or is of another model or optimizer;
                nothing has changed then.
        """
        self._saving.load(path)

    def checkpoint_content(self) -> dict[str, Any]:
        """Everything that a checkpoint holds, copied: later steps do not change it.

        Raises:
            TypeError: A callback, scheduler or loader has a state that no file can hold; its place is named.
        """
        return self._saving.content(self.run)

    def judged_weights(self) -> AbstractContextManager[Mapping[str, Any]]:
        """A context manager, for callbacks: in the block within `fit`, the model has the weights that are judged.

        After `fit` the model has them anyway. See docs/explanation/checkpoints.md.
        """
        return self.callbacks.judged_weights()

    def close(self) -> None:
        """Close the files that callbacks hold open (those of TensorBoard)."""
        self.callbacks.close()

    @property
    def _saving(self) -> Saving:
        return Saving(self.context, self.callbacks, self.history, self._position, self._attributes, self.train_metrics)

    # ---------------------------------------------------------------- where it stands

    @property
    def step(self) -> int:
        """Optimizer steps of all runs."""
        return self._position.step

    @property
    def epoch(self) -> int:
        """Completed epochs of all runs."""
        return self._position.epoch

    @property
    def skipped_steps(self) -> int:
        """Steps that were left out because a number was not finite."""
        return self._position.skipped_steps

    def stop(self, *, within_epoch: bool = False) -> None:
        """End the run after the current epoch; for callbacks.

        Args:
            within_epoch: End it after the current step; the epoch so far is validated and written into the history.
        """
        if self.run is not None:
            self.run.stopping = True
            self.run.ending = within_epoch and self.run.meter is not None

    @property
    def optimizers(self) -> list[ScheduledOptim]:
        """The trainer's optimizer and the other ones."""
        return [self.optimizer, *self.other_optimizers.values()]

    @property
    def context(self) -> Context:
        """The model with everything that computes and changes it: the argument of steps and searches."""
        return Context(
            self.model,
            self.loss,
            self.optimizer,
            self.engine,
            self.training_step,
            self.evaluation_step,
            self.prediction_step,
            self.other_optimizers,
            owner=self,
            count_samples=self.count_samples,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything except the run, whose data and signal handlers belong to this process; a copy begins a new run."""
        return vars(self) | {"run": None}

    def __repr__(self) -> str:
        return (
            f"Trainer(model={type(self.model).__name__}, device={self.engine.device}, precision={self.engine.precision}"
            f", optimizer={type(self.optimizer.optimizer).__name__}, learning_rate={self.optimizer.learning_rate:g}"
            f", step={self.step})"
        )
