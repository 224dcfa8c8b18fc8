"""One optimizer step: the gradients of a window of batches, the update, and what stands in its way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mxtorch._structure import detached
from mxtorch.engines.base import StepResult
from mxtorch.engines.nonfinite import MOST_SKIPS_IN_A_ROW, BadNumberError, KeptBuffers
from mxtorch.training import diagnosis, out_of_memory
from mxtorch.training.context import Context
from mxtorch.training.data import Window
from mxtorch.training.metrics import MetricBuffer
from mxtorch.training.supervised import Batch, StepOutput, check_loss, checked_labels, explain_first_batch
from mxtorch.training.trial import in_memory_format, needs_trial, repeats_without_format

NonfinitePolicy = Literal["raise", "skip", "rollback"]


@dataclass(frozen=True)
class StepSettings:
    """How a step is taken; see `Trainer` for the meaning of each.

    Attributes:
        accumulate: Batches to a step.
        clip_grad_norm: The norm that all gradients together are clipped to.
        clip_grad_value: The absolute value that each element of the gradients is clipped to.
        on_nonfinite: What a loss or gradient that is not finite means.
        log_every: Steps between two readings of the loss.
    """

    accumulate: int = 1
    clip_grad_norm: float | None = None
    clip_grad_value: float | None = None
    on_nonfinite: NonfinitePolicy = "raise"
    log_every: int = 50


class StepRunner:
    """Takes the steps of one pass over data, and holds what that pass needs.

    Args:
        context: The model with everything that computes and changes it.
        settings: How a step is taken.
        trial: The steps are those of a search and will be undone: a bad number is a result, not an error, and no
            buffers are kept for undoing a step.
        auto_accumulate: Where the memory is full, take each batch in two parts, then in four, and so on.
        place: Words for where a window is, as `"step 7 (batch 6 of the epoch)"`, for messages.

    Attributes:
        metrics: The training metrics that the steps of this pass update, or None.
        micro_batches: The parts in which each batch is taken, for want of memory.
        skipped_steps: Steps that were left out because a number was not finite.
    """

    def __init__(
        self,
        context: Context,
        settings: StepSettings,
        *,
        trial: bool = False,
        auto_accumulate: bool = False,
        place: Callable[[Window], str] = lambda window: "the step",
    ) -> None:
        self.context = context
        self.settings = settings
        self.metrics: MetricBuffer | None = None
        self.micro_batches = 1
        self.skipped_steps = 0
        self._trial = trial
        self._auto_accumulate = auto_accumulate and not trial
        self._place = place
        self._first_batch = True
        self._on_trial = False
        self._skips_in_a_row = 0
        self._kept_buffers: KeptBuffers | None = None
        self._engine, self._optimizer = context.engine, context.optimizer
        self._training_step, self._agree = context.training_step, context.engine.agree
        self._clips = {"clip_grad_norm": settings.clip_grad_norm, "clip_grad_value": settings.clip_grad_value}
        self._on_nonfinite = None if trial else settings.on_nonfinite
        self._needs_closure = isinstance(context.optimizer.optimizer, torch.optim.LBFGS)
        self._needs_autocast = context.engine.precision != "fp32"
        self._looks_at_losses = not (trial or context.engine.asynchronous)

    def begin_pass(self) -> None:
        """Look closely at the next batch, as the first of a pass."""
        self._first_batch = True
        self._on_trial = needs_trial(self.context, "training_step")
        skips = self.settings.on_nonfinite == "skip" and not self._trial
        self._kept_buffers = KeptBuffers(self.context.modules) if skips else None

    def step(self, window: Window, *, measure_norm: bool = False) -> tuple[Tensor | None, StepResult]:
        """Take a step, in parts where the memory is too small, or leave it out.

        Args:
            window: The batches of the step.
            measure_norm: Measure the norm of the gradient, too.

        Returns:
            The mean loss over the samples of the window, a scalar tensor, None for a step that was left out; and what
            the step did.

        Raises:
            FloatingPointError: A number is not finite; the first bad layer is named.
            torch.OutOfMemoryError: The memory is full; the batch size is named.
        """
        if self._on_trial:
            self._on_trial = False
            return in_memory_format(self.context, "training_step", lambda: self.step(window, measure_norm=measure_norm))
        if self._needs_closure:
            return self._closure_step(window)
        agree, context = self._agree, self.context
        while True:
            bad: BadNumberError | None = None
            full: torch.OutOfMemoryError | None = None
            try:
                taken = self._take(window, measure_norm)
            except BadNumberError as error:
                bad = error
            except torch.OutOfMemoryError as error:
                # The traceback holds the activations, which would keep the memory full.
                full = error.with_traceback(None) if self._auto_accumulate else error
            except Exception as error:
                if not repeats_without_format(context, "training_step", error):
                    raise
                continue
            if agree(full is not None):
                self._take_smaller_parts(window, full)
            elif agree(bad is not None):
                return None, self._leave_out(window, bad)
            else:
                return taken

    def _take(self, window: Window, measure_norm: bool) -> tuple[Tensor, StepResult]:
        engine, optimizer = self._engine, self._optimizer
        if self._kept_buffers is not None:
            self._kept_buffers.keep()
        engine.zero_grad(optimizer)
        compared: list[tuple[Any, Any]] | None = None if self.metrics is None else []
        if self.micro_batches > 1:
            window = out_of_memory.split(window, self.micro_batches)
        if len(window.batches) == 1:
            loss = self._forward(window.batches[0], compared)
            engine.backward(loss)
            loss = loss.detach()
        else:
            loss = self._accumulate(window, compared)
        result = engine.step(optimizer, measure_norm=measure_norm, on_nonfinite=self._on_nonfinite, **self._clips)
        if result.bad is not None and self._kept_buffers is not None:
            self._kept_buffers.restore(result.bad)
        if compared:
            assert self.metrics is not None
            for outputs, targets in compared:
                self.metrics.update(outputs, targets)
        self._skips_in_a_row = 0
        return loss, result

    def _accumulate(self, window: Window, compared: list[tuple[Any, Any]] | None) -> Tensor:
        """Add up the gradients of the window's mean loss; each batch weighs as many samples as it holds."""
        engine, model = self.context.engine, self.context.model
        total: Tensor | None = None
        last = len(window.batches) - 1
        for index, (batch, size) in enumerate(zip(window.batches, window.sizes, strict=True)):
            loss = self._forward(batch, compared)
            if size != window.samples:
                loss = loss * (size / window.samples)
            if index < last:
                with engine.no_sync(model):
                    engine.backward(loss)
            else:
                engine.backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _forward(self, batch: Batch, compared: list[tuple[Any, Any]] | None) -> Tensor:
        """The loss of a batch. Outputs and targets, for metrics, are collected in `compared`."""
        batch = self._engine.move(batch)
        if self._first_batch:
            output = self._first_forward(batch)
        elif self._needs_autocast:
            with self._engine.autocast():
                output = self._training_step(batch)
        else:
            output = self._training_step(batch)
        if isinstance(output, Tensor):
            loss = output
        else:
            loss, outputs, targets = output  # type: ignore[assignment]
            if compared is not None:
                compared.append((detached(outputs), targets))
            del outputs  # its memory is the backward pass's
        # Reading a number costs nothing on the CPU, so a bad one is found there before it spoils the weights.
        if self._looks_at_losses and not math.isfinite(value := loss.item()):
            raise BadNumberError(f"the loss is {value}")
        return loss

    def _first_forward(self, batch: Batch) -> Tensor | StepOutput:
        """The first batch of a pass: what is wrong with it is explained."""
        context = self.context
        try:
            with context.engine.autocast(), checked_labels(context.engine.asynchronous):
                output = context.training_step(batch)
            as_output = StepOutput(output) if isinstance(output, Tensor) else output
            check_loss(as_output, wants_outputs=self.metrics is not None)
        except Exception as error:
            explain_first_batch(error, batch, "training_step")
        self._first_batch = False
        return output

    def _closure_step(self, window: Window) -> tuple[Tensor, StepResult]:
        """A step of LBFGS, which computes loss and gradients as often as it likes."""
        losses: list[Tensor] = []

        def closure() -> Tensor:
            self.context.engine.zero_grad(self.context.optimizer)
            losses.append(self._accumulate(window, None))
            return losses[-1]

        try:
            self.context.optimizer.step(closure)
        except BadNumberError as error:
            raise FloatingPointError(f"{self._place(window)} is not finite: {error}; lower the learning rate") from None
        return losses[0], StepResult(True, None)

    def _take_smaller_parts(self, window: Window, error: torch.OutOfMemoryError | None) -> None:
        """Take batches in twice as many parts from now on, or raise where that can't help or is not wanted."""
        error = error or torch.OutOfMemoryError("the memory of another process is full")
        if not self._auto_accumulate or self.micro_batches >= max(window.sizes):
            raise out_of_memory.explained(error, window, self._place(window), self.micro_batches) from error
        self.context.engine.zero_grad(self.context.optimizer)
        out_of_memory.release()
        if self.micro_batches == 1:
            out_of_memory.warn_of_batch_norm(self.context.model)
        self.micro_batches *= 2

    def _leave_out(self, window: Window, error: BadNumberError | None) -> StepResult:
        """Leave a bad step out, or raise what is wrong with it."""
        reason = "a number of another process is not finite" if error is None else str(error)
        too_many = self._skips_in_a_row + 1 >= MOST_SKIPS_IN_A_ROW
        if self._kept_buffers is None or too_many:
            if too_many:
                reason = f"{reason}, as in the {self._skips_in_a_row} steps before it"
            message = diagnosis.not_finite(self.context, window, self._place(window), reason)
            raise FloatingPointError(message) from None
        self._kept_buffers.restore()
        self.context.engine.zero_grad(self.context.optimizer)
        self.skipped_steps += 1
        self._skips_in_a_row += 1
        return StepResult(False, None)
