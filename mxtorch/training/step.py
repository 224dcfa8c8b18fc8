"""One optimizer step: the gradients of a window of batches, the update, and what stands in its way."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mxtorch._checks import check_integer, closest, positive_rate
from mxtorch._structure import detached
from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.engines.base import StepResult
from mxtorch.engines.nonfinite import MOST_SKIPS_IN_A_ROW, BadNumberError, KeptBuffers
from mxtorch.training import diagnosis, out_of_memory
from mxtorch.training.closures import PassedOver, check_closure_settings, check_finite, clip_gradients, needs_closure
from mxtorch.training.context import Context
from mxtorch.training.data import Window
from mxtorch.training.epoch_lengths import accumulate_in
from mxtorch.training.loss_weight import Weight, as_scalar
from mxtorch.training.metrics import MetricBuffer
from mxtorch.training.shared_sums import SharedSums
from mxtorch.training.supervised import (
    Batch,
    StepOutput,
    check_loss,
    checked_labels,
    explain_first_batch,
    raise_with_advice,
)
from mxtorch.training.trial import in_memory_format, needs_trial, repeats_without_format
from mxtorch.training.window_sums import WindowSums


class FullElsewhereError(torch.OutOfMemoryError):
    """The memory of another process is full."""


NonfinitePolicy = Literal["raise", "skip", "rollback"]


@dataclass(frozen=True)
class StepSettings:
    """How a step is taken; see `Trainer` for the meaning of each.

    Attributes:
        accumulate: Batches to a step, in the first epoch.
        clip_grad_norm: The norm that all gradients together are clipped to.
        clip_grad_value: The absolute value that each element of the gradients is clipped to.
        on_nonfinite: What a loss or gradient that is not finite means.
        log_every: Steps between two readings of the loss.
        accumulate_from: Pairs of an epoch of the run, counted from 1, and the batches to a step from there on; rising.
    """

    accumulate: int = 1
    clip_grad_norm: float | None = None
    clip_grad_value: float | None = None
    on_nonfinite: NonfinitePolicy = "raise"
    log_every: int = 50
    accumulate_from: tuple[tuple[int, int], ...] = ()

    @classmethod
    def checked(
        cls, accumulate: Any, clip_grad_norm: Any, clip_grad_value: Any, on_nonfinite: Any, log_every: Any
    ) -> StepSettings:
        """The settings that arguments of `Trainer` mean; each argument has the name of one there.

        Raises:
            TypeError: An argument is of the wrong kind.
            ValueError: An argument is out of range, or `on_nonfinite` is not one of its names.
        """
        batches_to_a_step, changes = accumulations(accumulate)
        norm = None if clip_grad_norm is None else positive_rate(clip_grad_norm, "clip_grad_norm")
        value = None if clip_grad_value is None else positive_rate(clip_grad_value, "clip_grad_value")
        log_every = check_integer(log_every, "log_every")
        policies = get_args(NonfinitePolicy)
        if on_nonfinite not in policies:
            raise ValueError(f"on_nonfinite: got {on_nonfinite!r}{closest(str(on_nonfinite), policies)}")
        return cls(batches_to_a_step, norm, value, on_nonfinite, log_every, changes)

    @property
    def accumulations(self) -> tuple[tuple[int, int], ...]:
        """As `accumulate_from`, with the first epoch."""
        return ((1, self.accumulate), *self.accumulate_from)

    def accumulate_in(self, epoch: int) -> int:
        """Batches to a step in an epoch of the run, counted from 0."""
        return accumulate_in(self.accumulations, epoch)


def accumulations(accumulate: Any) -> tuple[int, tuple[tuple[int, int], ...]]:
    """What `Trainer(accumulate=...)` means: batches to a step in the first epoch, and the epochs where they change.

    Args:
        accumulate: Batches to a step, or these by the epoch of a run, counted from 1, at which they begin.

    Raises:
        TypeError: A number is no integer.
        ValueError: A number is below 1, or it is not said what the first epoch has.

    Example:
        >>> accumulations({1: 8, 3: 2})
        (8, ((3, 2),))
    """
    if not isinstance(accumulate, Mapping):
        return check_integer(accumulate, "accumulate"), ()
    changes = sorted(
        (check_integer(epoch, "epoch of accumulate"), check_integer(count, f"accumulate[{epoch}]"))
        for epoch, count in accumulate.items()
    )
    if not changes or changes[0][0] != 1:
        raise ValueError(f"accumulate: got {accumulate!r}; begin with epoch 1, as {{1: 8, 3: 2}}")
    return changes[0][1], tuple(changes[1:])


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
        skipped_steps: Steps that were left out because a number was not finite, or no batch had a loss.
        has_loss: Whether `training_step` has returned anything but None; None before its first call.
        first_look: Called once, with what the first batch of all gave, before its gradients; None for nothing.
        weight: What the loss of the last step weighs beside those of other steps.
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
        self.has_loss: bool | None = None
        self.first_look: Callable[[StepOutput], None] | None = None
        self.weight: Weight | None = None
        self._trial = trial
        self._auto_accumulate = auto_accumulate and not trial
        self._place = place
        self._first_batch = True
        self._on_trial = False
        self._skips_in_a_row = 0
        self._kept_buffers: KeptBuffers | None = None
        self._skips = False
        self._engine, self._optimizer = context.engine, context.optimizer
        self._training_step = context.training_step
        self._clips = {"clip_grad_norm": settings.clip_grad_norm, "clip_grad_value": settings.clip_grad_value}
        self._on_nonfinite = None if trial else settings.on_nonfinite
        self._no_context = contextlib.nullcontext()
        self._needs_closure = needs_closure(context.optimizer.optimizer)
        if self._needs_closure:
            check_closure_settings(context, auto_accumulate=auto_accumulate)
        self._needs_autocast = context.engine.precision != "fp32"
        self._looks_at_losses = not (trial or context.engine.asynchronous)
        # Optimizers that training_step steps itself compute gradients of their own meanwhile; and a process whose
        # memory is full must not leave the others in the midst of an exchange.
        self._held_back = self._auto_accumulate or bool(context.other_optimizers)

    def begin_pass(self) -> None:
        """Look closely at the next batch, as the first of a pass."""
        self._first_batch = True
        self._on_trial = needs_trial(self.context, "training_step")
        skips = self.settings.on_nonfinite == "skip" and not self._trial
        self._skips = skips
        self._kept_buffers = None
        if skips or not (self._trial or self._engine.asynchronous):
            kept = KeptBuffers(self.context.modules, statistics_only=not skips)
            self._kept_buffers = kept if len(kept) else None

    def step(self, window: Window, *, measure_norm: bool = False) -> tuple[Tensor | None, StepResult]:
        """Take a step, in parts where the memory is too small, or leave it out.

        Args:
            window: The batches of the step.
            measure_norm: Measure the norm of the gradient, too.

        Returns:
            The loss of the window as of one large batch, a scalar tensor, None for a step that was left out; and what
            the step did.

        Raises:
            FloatingPointError: A number is not finite; the first bad layer is named.
            torch.OutOfMemoryError: The memory is full; the batch size is named.
        """
        if self._on_trial:
            self._on_trial = False
            return in_memory_format(self.context, "training_step", lambda: self.step(window, measure_norm=measure_norm))
        if self._needs_closure:
            return self._closure_step(window, measure_norm)
        context = self.context
        while True:
            bad: BadNumberError | None = None
            full: torch.OutOfMemoryError | None = None
            try:
                taken = self._take(window, measure_norm)
            except BadNumberError as error:
                bad = error
            except ValueError as error:
                if repeats_without_format(context, "training_step", error):
                    continue
                raise_with_advice(error, self._place(window))
            except torch.OutOfMemoryError as error:
                # The traceback holds the activations, which would keep the memory full.
                full = error.with_traceback(None) if self._auto_accumulate else error
                if self._auto_accumulate and not isinstance(error, FullElsewhereError):
                    self._engine.agree(True)
            except Exception as error:
                if not repeats_without_format(context, "training_step", error):
                    raise
                continue
            if full is not None:
                self._take_smaller_parts(window, full)
            elif bad is not None:  # of gradients or a loss of all processes, so that all of them find it
                return None, self._leave_out(window, bad)
            else:
                return taken

    def _take(self, window: Window, measure_norm: bool) -> tuple[Tensor | None, StepResult]:
        engine, optimizer = self._engine, self._optimizer
        if self._kept_buffers is not None:
            self._kept_buffers.keep()
        engine.zero_grad(optimizer)
        compared: list[tuple[Any, Any]] | None = None if self.metrics is None else []
        loss = self._gradients_of(window, compared)
        if loss is None:
            return None, self._pass_over()
        result = engine.step(optimizer, measure_norm=measure_norm, on_nonfinite=self._on_nonfinite, **self._clips)
        if result.bad is not None and self._kept_buffers is not None and self._skips:
            self._kept_buffers.restore(result.bad)
        self._update_metrics(compared)
        self._skips_in_a_row = 0
        return loss, result

    def _gradients_of(self, window: Window, compared: list[tuple[Any, Any]] | None) -> Tensor | None:
        """Compute the gradients of the window's loss; returns the loss, None where no batch has one."""
        if self.micro_batches > 1:
            window = out_of_memory.split(window, self.micro_batches)
        if len(window.batches) > 1 or self._engine.world_size > 1:
            return self._accumulate(window, compared)
        loss = self._forward(window.batches[0], compared)
        if loss is None:
            return None
        self._engine.backward(loss)
        if self.weight is None:
            self.weight = window.samples
        return loss.detach()

    def _accumulate(self, window: Window, compared: list[tuple[Any, Any]] | None) -> Tensor | None:
        """Add up the gradients of the window's loss, in which each batch weighs what its own loss is a mean of.

        What the batches weigh is known only after their forward passes. So the first one is taken for typical: each
        loss is divided by what the whole window then weighs, and gradients that were divided by something else are
        corrected at the end.
        """
        engine, model = self.context.engine, self.context.model
        is_shared = engine.world_size > 1
        held_back = is_shared and self._held_back
        count = len(window.batches)
        sums: Any = (
            SharedSums(engine, count, held_back=held_back)
            if is_shared
            else WindowSums(window.samples, on_device=engine.asynchronous)
        )
        for index, (batch, size) in enumerate(zip(window.batches, window.sizes, strict=True)):
            exchanges = index == count - 1 and not held_back
            with self._no_context if exchanges else engine.no_sync(model):
                loss = self._forward(batch, compared, size)
                stand_in = engine.stand_in() if loss is None else None
                if is_shared or loss is not None:
                    loss = sums.add(loss, size if self.weight is None else self.weight, size)
                if loss is not None and not exchanges:
                    engine.backward(loss)
            if exchanges:
                engine.exchange_gradients(self._optimizer, stand_in if loss is None else loss, held_back=False)
        if held_back and self._auto_accumulate and engine.agree(False):
            raise FullElsewhereError("the memory of another process is full")
        total: Tensor | None = sums.finish(self._optimizer)
        if held_back:
            engine.exchange_gradients(self._optimizer, None, held_back=True)
        self.weight = sums.weight
        if is_shared and self._looks_at_losses and total is not None and not math.isfinite(value := total.item()):
            raise BadNumberError(f"the loss is {value}")
        return total

    def _forward(self, batch: Batch, compared: list[tuple[Any, Any]] | None, size: int = 1) -> Tensor | None:
        """The loss of a batch, None for one to pass over. Outputs and targets, for metrics, go into `compared`."""
        if not size:  # padding: other processes have samples left, and this one has none
            if not self._engine.shards:
                return None
            compared = None
        batch = self._engine.move(batch)
        if self._first_batch:
            output = self._first_forward(batch)
        elif self._needs_autocast:
            with self._engine.autocast():
                output = self._training_step(batch)
        else:
            output = self._training_step(batch)
        self.weight = None
        if isinstance(output, Tensor):
            loss = output
        elif output is None:
            return None
        else:
            loss, outputs, targets, weight = output  # type: ignore[assignment]
            self.weight = weight(outputs, targets) if callable(weight) else weight
            if type(self.weight) in (int, float) and self.weight == 0:
                return None
            if compared is not None:
                compared.append((detached(outputs), targets))
            del outputs  # its memory is the backward pass's
        # Reading a number costs nothing on the CPU, so a bad one is found there before it spoils the weights.
        if not size:
            self.weight = 0
        elif self._looks_at_losses and not math.isfinite(value := loss.item()):
            if self.weight is None or float(as_scalar(self.weight)) != 0:
                if self._engine.world_size > 1:  # the loss of all processes is looked at, by all of them
                    return loss
                raise BadNumberError(f"the loss is {value}")
            if compared:
                compared.pop()
            return None  # all of its targets are ignored: a mean over nothing
        return loss

    def _update_metrics(self, compared: list[tuple[Any, Any]] | None) -> None:
        if compared:
            assert self.metrics is not None
            for outputs, targets in compared:
                self.metrics.update(outputs, targets)

    def _pass_over(self) -> StepResult:
        """Leave out a step of which no batch has a loss."""
        self._engine.zero_grad(self._optimizer)
        self.skipped_steps += 1
        return StepResult(False, None)

    def _first_forward(self, batch: Batch) -> Tensor | StepOutput | None:
        """The first batch of a pass: what is wrong with it is explained."""
        context = self.context
        try:
            with context.engine.autocast(), checked_labels(context.engine.asynchronous):
                output = context.training_step(batch)
            if output is None:
                self.has_loss = bool(self.has_loss)
                return None
            as_output = output if isinstance(output, StepOutput) else StepOutput(output)
            check_loss(as_output, wants_outputs=self.metrics is not None)
        except Exception as error:
            explain_first_batch(error, batch, "training_step")
        self._first_batch, self.has_loss = False, True
        if self.first_look is not None:
            look, self.first_look = self.first_look, None
            look(as_output)
        return output

    def _closure_step(self, window: Window, measure_norm: bool) -> tuple[Tensor | None, StepResult]:
        """A step of an optimizer that computes loss and gradients as often as it likes, as LBFGS and SAM do.

        Gradients are clipped in every computation. Loss, norm and metrics are those of the first one. A computation
        that gives a bad number comes when the weights have moved already, so a step that may be left out is undone from
        a copy of weights, optimizer state and buffers.
        """
        engine, optimizer = self._engine, self._optimizer
        before = TrainingState((), optimizer.optimizer) if self._skips else None
        if self._skips and self._kept_buffers is not None:
            self._kept_buffers.keep()
        compared: list[tuple[Any, Any]] | None = None if self.metrics is None else []
        found: list[tuple[Tensor, Tensor | None]] = []

        @torch.enable_grad()
        def closure() -> Tensor:
            engine.zero_grad(optimizer)
            loss = self._gradients_of(window, None if found else compared)
            if loss is None:
                raise PassedOver
            if not self._trial:
                check_finite(loss, optimizer)
            found.append((loss, clip_gradients(optimizer, measure_norm=measure_norm, **self._clips)))
            return loss

        try:
            if not isinstance(optimizer.optimizer, torch.optim.LBFGS):
                closure()  # others step from gradients that they have, and compute further ones
            optimizer.step(closure)
        except PassedOver:
            return None, self._pass_over()
        except BadNumberError as error:
            if before is None:
                kind = type(optimizer.optimizer).__name__
                raise FloatingPointError(
                    f"{self._place(window)} is not finite: {error}, in computation {len(found) + 1} of {kind}'s step. "
                    f"{diagnosis.advice(str(error))} and undoes them"
                ) from None
            before.restore()
            return None, self._leave_out(window, error)
        except torch.OutOfMemoryError as error:
            raise out_of_memory.explained(error, window, self._place(window), can_split=False) from error
        self._update_metrics(compared)
        self._skips_in_a_row = 0
        return found[0][0], StepResult(True, found[0][1])

    def _take_smaller_parts(self, window: Window, error: torch.OutOfMemoryError) -> None:
        """Take batches in twice as many parts from now on, or raise where that can't help or is not wanted."""
        if not self._auto_accumulate or self.micro_batches >= max(window.sizes):
            raise out_of_memory.explained(error, window, self._place(window), parts=self.micro_batches) from error
        self.context.engine.zero_grad(self.context.optimizer)
        out_of_memory.release()
        if self.micro_batches == 1:
            out_of_memory.warn_of_batch_norm(self.context.model)
        self.micro_batches *= 2

    def _leave_out(self, window: Window, error: BadNumberError) -> StepResult:
        """Leave a bad step out, or raise what is wrong with it."""
        reason = str(error)
        too_many = self._skips_in_a_row + 1 >= MOST_SKIPS_IN_A_ROW
        if self._kept_buffers is not None:
            self._kept_buffers.restore()
        if not self._skips or too_many:
            if too_many:
                reason = f"{reason}, as in the {self._skips_in_a_row} steps before it"
            message = diagnosis.not_finite(self.context, window, self._place(window), reason)
            raise FloatingPointError(message) from None
        self.context.engine.zero_grad(self.context.optimizer)
        self.skipped_steps += 1
        self._skips_in_a_row += 1
        return StepResult(False, None)
