"""How one optimizer step is taken: gradients of a window of batches, the update, and what stands in its way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mxtorch import batches, diagnosis, memory, nonfinite, steps
from mxtorch.engine import StepResult
from mxtorch.meters import LossMeter
from mxtorch.metrics import MetricBuffer
from mxtorch.nonfinite import BadNumberError
from mxtorch.steps import StepOutput

if TYPE_CHECKING:
    from mxtorch.trainer import Trainer


def optimizer_step(
    trainer: Trainer, window: batches.Window, metrics: MetricBuffer | None, measure_norm: bool
) -> tuple[Tensor | None, StepResult]:
    """Take a step, in parts where the memory is too small, or leave it out; see `Trainer.optimizer_step`."""
    if isinstance(trainer.optimizer.optimizer, torch.optim.LBFGS):
        return _closure_step(trainer, window)
    while True:
        whole = trainer.micro_batches == 1
        parts = window if whole else memory.split(window, trainer.micro_batches)
        try:
            return _take_step(trainer, parts, metrics, measure_norm)
        except BadNumberError as error:
            return None, _skipped(trainer, window, error)
        except torch.OutOfMemoryError as error:
            too_small = trainer.micro_batches >= max(window.sizes)
            if not trainer.auto_accumulate or trainer.sweeping or too_small:
                raise memory.explained(error, window, trainer.step + 1, trainer.micro_batches) from error
        trainer.optimizer.zero_grad()
        memory.release()
        if whole:
            memory.warn_of_batch_norm(trainer.model)
        trainer.micro_batches *= 2


def _take_step(
    trainer: Trainer, window: batches.Window, metrics: MetricBuffer | None, measure_norm: bool
) -> tuple[Tensor, StepResult]:
    if trainer.kept_buffers is not None:
        trainer.kept_buffers.keep()
    trainer.optimizer.zero_grad()
    compared: list[tuple[Any, Any]] | None = None if metrics is None else []
    loss = _backward(trainer, window, compared)
    result = trainer.engine.step(
        trainer.optimizer,
        clip_grad_norm=trainer.clip_grad_norm,
        clip_grad_value=trainer.clip_grad_value,
        measure_norm=measure_norm,
        on_nonfinite=None if trainer.sweeping else trainer.on_nonfinite,
    )
    if result.bad is not None and trainer.kept_buffers is not None:
        trainer.kept_buffers.restore(result.bad)
    if metrics is not None and compared is not None:
        for outputs, targets in compared:
            metrics.update(outputs, targets)
    trainer.skips_in_a_row = 0
    return loss, result


def _backward(trainer: Trainer, window: batches.Window, compared: list[tuple[Any, Any]] | None) -> Tensor:
    """Accumulate the gradient of the window's mean loss; each batch weighs as many samples as it holds.

    Outputs and targets, for metrics, are collected in `compared`.
    """
    total: Tensor | None = None
    for batch, size in zip(window.batches, window.sizes, strict=True):
        loss, outputs, targets = _forward(trainer, trainer.engine.move(batch))
        if compared is not None:
            compared.append((batches.detached(outputs), targets))
        del outputs, targets  # their memory is the backward pass's
        if size != window.samples:
            loss = loss * (size / window.samples)
        trainer.engine.backward(loss)
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return total


def _forward(trainer: Trainer, batch: Any) -> tuple[Tensor, Any, Any]:
    """Loss, outputs and targets of a batch; the first one of a pass is looked at closely."""
    try:
        with trainer.engine.autocast():
            output = trainer.training_step(batch)
        if isinstance(output, Tensor):
            output = StepOutput(output)
        if trainer.first_batch:
            steps.check_loss(output, wants_outputs=trainer.train_metrics is not None and not trainer.sweeping)
    except Exception as error:
        if trainer.first_batch:
            steps.explain_first_batch(error, batch, "training_step")
        raise
    trainer.first_batch = False
    loss, outputs, targets = output
    assert loss is not None
    # Reading a number costs nothing on the CPU, so there a bad one is told before it spoils the weights.
    if trainer.engine.reads_are_free and not trainer.sweeping and not math.isfinite(value := loss.item()):
        raise BadNumberError(f"the loss is {value}")
    return loss, outputs, targets


def _closure_step(trainer: Trainer, window: batches.Window) -> tuple[Tensor, StepResult]:
    """A step of LBFGS, which computes loss and gradients as often as it likes."""
    losses: list[Tensor] = []

    def closure() -> Tensor:
        trainer.optimizer.zero_grad()
        losses.append(_backward(trainer, window, None))
        return losses[-1]

    try:
        trainer.optimizer.step(closure)
    except BadNumberError as error:
        raise FloatingPointError(f"step {trainer.step + 1} is not finite: {error}; lower the learning rate") from None
    return losses[0], StepResult(True, None)


def _skipped(trainer: Trainer, window: batches.Window, error: BadNumberError) -> StepResult:
    """Leave a bad step out, or raise what it is."""
    too_many = trainer.skips_in_a_row + 1 >= nonfinite.MOST_SKIPS_IN_A_ROW
    if trainer.kept_buffers is None or too_many:
        assert trainer.run is not None
        first = trainer.run.feed.batches - len(window.batches)
        reason = f"{error}, as in the {trainer.skips_in_a_row} steps before it" if too_many else str(error)
        raise FloatingPointError(diagnosis.not_finite(trainer, window, trainer.step + 1, first, reason)) from None
    trainer.kept_buffers.restore()
    trainer.optimizer.zero_grad()
    trainer.skipped_steps += 1
    trainer.skips_in_a_row += 1
    return StepResult(False, None)


def read_losses(trainer: Trainer, meter: LossMeter) -> dict[str, float]:
    """The meter's figures; on an accelerator it is here that bad steps come to light.

    Raises:
        FloatingPointError: A loss or gradient was not finite; step, batch and layer are named.
    """
    try:
        record, bad_steps = meter.read(skips=trainer.on_nonfinite == "skip")
    except BadNumberError as error:
        assert meter.bad_step is not None
        trainer.engine.forget_bad_steps()
        message = diagnosis.not_finite_late(trainer, meter.bad_step, meter.count, str(error))
        raise FloatingPointError(message) from None
    if bad_steps:
        trainer.skipped_steps += bad_steps
        trainer.optimizer.current_steps -= bad_steps
    return record
