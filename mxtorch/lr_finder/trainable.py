"""What a search trains: steps at a rate, the loss of a held-out batch, and the way back to the start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.engines.base import Engine
from mxtorch.lr_finder.budget import usual_rate
from mxtorch.lr_finder.range_test import RateSetter, rate_setter
from mxtorch.optim import momentum
from mxtorch.optim.schedule_free import set_training_point
from mxtorch.optim.scheduled import ScheduledOptim, proportions
from mxtorch.training.context import Context
from mxtorch.training.data import Window, window_of
from mxtorch.training.loss_weight import as_scalar
from mxtorch.training.modes import set_training_mode
from mxtorch.training.out_of_memory import explained
from mxtorch.training.step import StepRunner, StepSettings
from mxtorch.training.supervised import (
    StepOutput,
    as_step_output,
    checked_labels,
    explain_first_batch,
    weight_of,
)
from mxtorch.training.trial import in_memory_format

Weighted = tuple[Tensor | None, float | Tensor]


class Trainable(Protocol):
    """What a search asks of a training, whoever wrote its loop.

    Attributes:
        engine: What the processes are that train together, of which a loop of one's own has one.
        accumulate: Batches to an optimizer step.
        read_lag: Steps after which a loss is read, so that an accelerator is not waited for.
        may_skip_steps: Whether steps may be left out without a fault, as those of fp16 whose gradients overflow.
        is_compiled: Whether a batch of another size costs a compilation.
        step_name: What a step is called in messages.
    """

    engine: Engine
    accumulate: int
    read_lag: int
    may_skip_steps: bool
    is_compiled: bool
    step_name: str

    def usual_rate(self, is_constant: bool) -> float:
        """The rate around which others are tried.

        Args:
            is_constant: False for a schedule that is at its peak for a short time.
        """

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that a step runs: the model, a loss with parameters or modes."""

    def capture(self, data: Any) -> TrainingState:
        """A copy of everything that steps and passes over the data change."""

    def begin(self) -> None:
        """Make ready for training from the state of the snapshot."""

    def rate_setter(self) -> RateSetter:
        """A function that sets the first group's rate, and the others in their ratios to it; no schedule is in force.

        It is asked for after each return to the snapshot.
        """

    def step(self, window: Window) -> tuple[Tensor | None, bool]:
        """One optimizer step: the loss, None where no batch has one; and whether the step was taken."""

    def move(self, batch: Any) -> Any:
        """The batch on the device."""

    def why_training_losses(self) -> str | None:
        """Why losses of held-out batches can't be computed at all, in words; None where they can, as far as known."""

    def why_not_judged(self, batch: Any) -> str:
        """Why a held-out batch has no loss, in words; empty where it has one. The model is in evaluation mode."""

    def loss_of(self, batch: Any) -> Weighted:
        """The loss of a held-out batch, and what it is a mean of. The model is in evaluation mode."""

    def exchanged_loss(self, batch: Any) -> float | None:
        """The loss of a batch with the targets of other samples; None where that means nothing.

        The model is in evaluation mode.
        """

    def read_later(self, value: Tensor) -> Callable[[], float]:
        """Begin to read a scalar tensor; the function that is returned gives the number."""


class TrainerSteps:
    """The steps of a trainer, as `fit` takes them.

    Args:
        context: The model with everything that computes and changes it.
        settings: How a step is taken.
        optimizer: Whose rate is searched.
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
        self._runner = StepRunner(context, settings, trial=True, place=lambda window: "a step of the search")
        self._labels_are_known = False
        # A training_step of the user's own is judged by itself where no evaluation_step goes with it.
        own_alone = context.has_own_training_step and not context.has_own_evaluation_step
        self._judged_step = context.training_step if own_alone else context.evaluation_step
        self._judged_name = "training_step" if own_alone else "evaluation_step"

    def usual_rate(self, is_constant: bool) -> float:
        """The usual rate of the optimizer's kind."""
        return usual_rate(self._optimizer.optimizer, is_constant)

    @property
    def modules(self) -> list[nn.Module]:
        """The model, and the loss where it is a module."""
        return self._context.modules

    def capture(self, data: Any) -> TrainingState:
        """A copy of everything that steps and passes over the data change."""
        return self._context.capture(data)

    def begin(self) -> None:
        """Training mode, the weights that are trained, and a close look at the next batch."""
        set_training_mode(self._context.model)
        set_training_point(self._context.optimizers)
        self._runner.begin_pass()

    def rate_setter(self) -> RateSetter:
        """A function that sets the rates; the optimizer's schedule is set aside."""
        self._optimizer.schedule = None
        momentum.begin(self._optimizer)
        groups = self._optimizer.param_groups
        return rate_setter(groups, proportions(groups, self._optimizer.base_learning_rates))

    def step(self, window: Window) -> tuple[Tensor | None, bool]:
        """One optimizer step: the loss, None where no batch has one; and whether the step was taken."""
        steps_before = self._optimizer.current_steps
        loss, _ = self._runner.step(window)
        return loss, self._optimizer.current_steps > steps_before

    def move(self, batch: Any) -> Any:
        """The batch on the engine's device."""
        return self._context.engine.move(batch)

    def why_training_losses(self) -> str | None:
        """`training_step` may step optimizers itself, and then it can't be run to judge."""
        if self._judged_name == "training_step" and self._context.other_optimizers:
            return "training_step steps optimizers itself: its loss is judged"
        return None

    def why_not_judged(self, batch: Any) -> str:
        """Whether the step gives a loss in evaluation mode; a step of the user's own may not."""
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
        """The loss of a held-out batch, and what it is a mean of."""
        output = self._output(batch)
        weight = None if output.loss is None else weight_of(output)
        return output.loss, (self._context.count_samples(batch) or 1) if weight is None else as_scalar(weight)

    def exchanged_loss(self, batch: Any) -> float | None:
        """The loss of a batch with the targets of other samples; None where that means nothing."""
        loss = self._context.loss
        if loss is None or self._context.has_own_evaluation_step or self._context.has_own_training_step:
            return None  # outputs of a step of the user's own may be for metrics, and need not suit the loss
        output = self._output(batch)
        with self._context.engine.autocast():
            return loss_with_exchanged_targets(loss, output)

    def read_later(self, value: Tensor) -> Callable[[], float]:
        """Begin to read a scalar tensor; the function that is returned gives the number."""
        return self._context.engine.read_later(value)

    def _judge_batch(self, batch: Any) -> Any:
        engine = self._context.engine
        batch = engine.move(batch)  # which is on the device, but maybe in another memory format
        with engine.autocast():
            return self._judged_step(batch)

    def _output(self, batch: Any) -> StepOutput:
        checks = self._context.engine.asynchronous and not self._labels_are_known
        try:
            with checked_labels(checks):
                given = in_memory_format(self._context, "evaluation_step", self._judge_batch, batch)
            output = StepOutput(None) if given is None else as_step_output(given)
        except torch.OutOfMemoryError as error:
            raise explained(error, window_of([batch]), "a look of the search", 1) from error
        except Exception as error:
            explain_first_batch(error, batch, self._judged_name)
        self._labels_are_known = True
        return output


def loss_with_exchanged_targets(loss: Callable[..., Tensor], output: StepOutput) -> float | None:
    """The loss of outputs against the targets of other samples; None where that means nothing.

    Args:
        loss: `loss(outputs, targets) -> scalar tensor`.
        output: Outputs and targets of a batch.
    """
    targets = output.targets
    if not isinstance(targets, Tensor) or targets.ndim == 0 or len(targets) < 4:
        return None
    return float(loss(output.outputs, targets.roll(len(targets) // 2, 0)))
