"""What a search needs of a training: steps at a rate, the loss of a held-out batch, and a return to the start."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.engines.base import Engine
from mxtorch.lr_finder.budget import usual_rate
from mxtorch.lr_finder.range_test import RateSetter, rate_setter
from mxtorch.optim import momentum
from mxtorch.optim.schedule_free import evaluation_point, set_training_point
from mxtorch.optim.scheduled import ScheduledOptim, proportions
from mxtorch.training.context import Context
from mxtorch.training.data import Window, window_of
from mxtorch.training.loss_weight import as_scalar
from mxtorch.training.modes import set_training_mode
from mxtorch.training.out_of_memory import explained
from mxtorch.training.step import StepRunner, StepSettings
from mxtorch.training.supervised import (
    StepOutput,
    check_scalar,
    checked_labels,
    explain_first_batch,
    weight_of,
)
from mxtorch.training.trial import in_memory_format

Weighted = tuple[Tensor | None, float | Tensor]


class Trainable(Protocol):
    """The interface between a search and a training loop. Trainer has one implementation, other loops have another.

    Attributes:
        engine: The engine of the processes that train together. A loop that the user wrote has one process.
        accumulate: The number of batches in an optimizer step.
        read_lag: A loss is read this many steps late, so that the search does not wait for an accelerator.
        may_skip_steps: Whether a skipped step is normal. In fp16, steps whose gradients overflow are skipped.
        is_compiled: Whether the model is compiled. A batch of another size then costs a new compilation.
        step_name: The name of a step in messages.
        optimizer_name: The name of the optimizer whose rate is searched; None for the one that the loop trains with.
    """

    engine: Engine
    accumulate: int
    read_lag: int
    may_skip_steps: bool
    is_compiled: bool
    step_name: str
    optimizer_name: str | None

    def usual_rate(self, is_constant: bool) -> float:
        """Return the rate around which the search tries others.

        Args:
            is_constant: False for a schedule that is at its peak for a short time.
        """

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that a step runs: the model, and the loss if it is a module."""

    def capture(self, data: Any) -> TrainingState:
        """Copy everything that steps and passes over the data change."""

    def begin(self) -> None:
        """Prepare for training from the state of the snapshot."""

    def rate_setter(self) -> RateSetter:
        """Return a function that sets the rate of the first group; the other groups keep their ratios to it.

        No schedule is active while the search trains. The search calls this method after each return to the snapshot.
        """

    def step(self, window: Window) -> tuple[Tensor | None, bool]:
        """Take one optimizer step; return the loss (None if no batch has one) and whether the step was taken."""

    def move(self, batch: Any) -> Any:
        """Move a batch to the device."""

    def judged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager: in the block, the model has the weights that are used after a training.

        Optimizers of the Schedule-Free kind train other weights than they leave.
        """

    def why_training_losses(self) -> str | None:
        """Say why the loss of a held-out batch can't be computed; None if nothing is known to prevent it."""

    def why_not_judged(self, batch: Any) -> str:
        """Say why a held-out batch has no loss; empty if it has one. The model is in evaluation mode."""

    def loss_of(self, batch: Any) -> Weighted:
        """Return the loss of a held-out batch and its weight. The model is in evaluation mode."""

    def exchanged_loss(self, batch: Any) -> float | None:
        """Return the loss of a batch with the targets of other samples; None if that has no meaning.

        The model is in evaluation mode.
        """

    def read_later(self, value: Tensor) -> Callable[[], float]:
        """Start to read a scalar tensor; return a function that waits for the number."""


class TrainerSteps:
    """The steps of a trainer, as `fit` takes them.

    Args:
        context: The model with everything that computes and changes it.
        settings: How a step is taken.
        optimizer: The optimizer whose rate is searched.
    """

    step_name = "training_step"

    def __init__(self, context: Context, settings: StepSettings, optimizer: ScheduledOptim) -> None:
        self.engine = context.engine
        self.accumulate = settings.accumulate
        self.read_lag = 2 if context.engine.asynchronous else 0
        self.may_skip_steps = context.engine.precision == "fp16"
        self.is_compiled = getattr(context.model, "_compiled_call_impl", None) is not None
        self._context = context
        self._optimizer = optimizer
        others = context.other_optimizers.items()
        self.optimizer_name = next((name for name, other in others if other is optimizer), None)
        self._runner = StepRunner(context, settings, trial=True, place=lambda window: "a step of the search")
        self._labels_are_known = False
        # If the user overrides training_step and not evaluation_step, training_step also computes held-out losses.
        own_alone = context.has_own_training_step and not context.has_own_evaluation_step
        self._judged_step = context.training_step if own_alone else context.evaluation_step
        self._judged_name = "training_step" if own_alone else "evaluation_step"

    def usual_rate(self, is_constant: bool) -> float:
        """Return the usual rate of this kind of optimizer."""
        return usual_rate(self._optimizer.optimizer, is_constant)

    @property
    def modules(self) -> list[nn.Module]:
        """The model, and the loss if it is a module."""
        return self._context.modules

    def capture(self, data: Any) -> TrainingState:
        """Copy everything that steps and passes over the data change."""
        return self._context.capture(data)

    def begin(self) -> None:
        """Set training mode, put the weights to train in place, and check the next batch closely."""
        set_training_mode(self._context.model)
        set_training_point(self._context.optimizers)
        self._runner.begin_pass()

    def rate_setter(self) -> RateSetter:
        """Return a function that sets the rates; the optimizer's schedule is removed until the snapshot is restored."""
        self._optimizer.schedule = None
        momentum.begin(self._optimizer)
        groups = self._optimizer.param_groups
        return rate_setter(groups, proportions(groups, self._optimizer.base_learning_rates))

    def step(self, window: Window) -> tuple[Tensor | None, bool]:
        """Take one optimizer step; return the loss (None if no batch has one) and whether the step was taken."""
        steps_before = self._optimizer.current_steps
        loss, _ = self._runner.step(window)
        return loss, self._optimizer.current_steps > steps_before

    def move(self, batch: Any) -> Any:
        """Move a batch to the engine's device."""
        return self._context.engine.move(batch)

    def judged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager: in the block, the model has averaged weights if an optimizer averages them."""
        return evaluation_point(self._context.optimizers)

    def why_training_losses(self) -> str | None:
        """Say whether `training_step` steps optimizers itself: then it would train on held-out samples."""
        if self._judged_name == "training_step" and self._context.other_optimizers:
            return "training_step steps optimizers itself: its loss is judged"
        return None

    def why_not_judged(self, batch: Any) -> str:
        """Try the step in evaluation mode; a step that the user wrote may give no loss there."""
        if self._judged_name == "evaluation_step":
            if self._output(batch).loss is None:
                return "evaluation_step gives no loss, so training losses are judged"
            return ""
        try:
            has_loss = self._output(batch).loss is not None
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            cause = error if error.__cause__ is None else error.__cause__
            return (
                f"training_step can't be run without gradients ({type(cause).__name__}: "
                f"{str(cause).partition(chr(10))[0]}), so training losses are judged"
            )
        return "" if has_loss else "training_step gives no loss without gradients, so training losses are judged"

    def loss_of(self, batch: Any) -> Weighted:
        """Return the loss of a held-out batch and its weight."""
        output = self._output(batch)
        weight = None if output.loss is None else weight_of(output)
        return output.loss, (self._context.count_samples(batch) or 1) if weight is None else as_scalar(weight)

    def exchanged_loss(self, batch: Any) -> float | None:
        """Return the loss of a batch with the targets of other samples; None if that has no meaning."""
        loss = self._context.loss
        if loss is None or self._context.has_own_evaluation_step or self._context.has_own_training_step:
            return None  # a step that the user wrote may return outputs for metrics, which the loss can't take
        output = self._output(batch)
        with self._context.engine.autocast():
            return loss_with_exchanged_targets(loss, output)

    def read_later(self, value: Tensor) -> Callable[[], float]:
        """Start to read a scalar tensor; return a function that waits for the number."""
        return self._context.engine.read_later(value)

    def _judge_batch(self, batch: Any) -> Any:
        engine = self._context.engine
        batch = engine.move(batch)  # it is on the device, but perhaps in another memory format
        with engine.autocast():
            return self._judged_step(batch)

    def _output(self, batch: Any) -> StepOutput:
        checks = self._context.engine.asynchronous and not self._labels_are_known
        try:
            with checked_labels(checks):
                given = in_memory_format(self._context, "evaluation_step", self._judge_batch, batch)
            output = given if isinstance(given, StepOutput) else StepOutput(given)
            if output.loss is not None:
                check_scalar(output.loss, self._judged_name)
        except torch.OutOfMemoryError as error:
            raise explained(error, window_of([batch]), "a look of the search") from error
        except Exception as error:
            explain_first_batch(error, batch, self._judged_name)
        self._labels_are_known = True
        return output


def loss_with_exchanged_targets(loss: Callable[..., Tensor], output: StepOutput) -> float | None:
    """Return the loss of outputs against the targets of other samples; None if that has no meaning.

    Args:
        loss: `loss(outputs, targets) -> scalar tensor`.
        output: The outputs and targets of a batch.
    """
    targets = output.targets
    if not isinstance(targets, Tensor) or targets.ndim == 0 or len(targets) < 4:
        return None
    return float(loss(output.outputs, targets.roll(len(targets) // 2, 0)))
