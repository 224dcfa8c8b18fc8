"""What went wrong in a step, found by running it once more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mxtorch import batches
from mxtorch.steps import StepOutput

if TYPE_CHECKING:
    from mxtorch.trainer import Trainer


def not_finite(trainer: Trainer, window: batches.Window, step: int, first_batch: int, what: str) -> str:
    """The message for a step whose loss or gradient is not finite.

    Args:
        trainer: Its weights must be those before the step.
        window: The batches of the step.
        step: Its number, from 1.
        first_batch: The number of the window's first batch in its epoch, from 0.
        what: The finding, as in `"the loss is nan"`.
    """
    last = first_batch + len(window.batches) - 1
    place = f"batch {first_batch}" if last == first_batch else f"batches {first_batch} to {last}"
    return (
        f"step {step} is not finite ({place} of the epoch): {what}; {first_bad_layer(trainer, window)}. Lower the "
        "learning rate (find_lr suggests one), set clip_grad_norm, or look for NaN in the data; on_nonfinite='skip' "
        "passes over such steps"
    )


def not_finite_late(trainer: Trainer, step: int, count: int, what: str) -> str:
    """As `not_finite`, for a step that an accelerator told of some steps later; its batches are read again.

    Args:
        trainer: It has taken further steps. A fused optimizer has held them back, any other has spoilt the weights.
        step: The number of the bad step.
        count: Steps of the epoch by now.
        what: The finding.
    """
    assert trainer.run is not None
    first = (step - 1 - (trainer.step - count)) * trainer.accumulate
    again = trainer.run.feed.read_again(first, trainer.accumulate)
    sizes = [batches.batch_size(batch) or 1 for batch in again]
    window = batches.Window(again, sizes, sum(sizes))
    if again and all(_is_finite(parameter) for parameter in trainer.model.parameters()):
        return not_finite(trainer, window, step, first, what)
    return (
        f"step {step} is not finite (batch {first} of the epoch): {what}. Its weights were written over before the "
        "device was read, so the layer can't be told: a fused optimizer (fused=True) keeps them. Lower the learning "
        "rate (find_lr suggests one), set clip_grad_norm, or look for NaN in the data; on_nonfinite='skip' passes over "
        "such steps"
    )


def first_bad_layer(trainer: Trainer, window: batches.Window) -> str:
    """Run a step again, without its update, and name where the first number that is not finite comes up.

    Everything is put back afterwards. Random numbers are not those of the step: dropout drops others.
    """
    for index, batch in enumerate(window.batches):
        if not _is_finite(batch):
            return f"the batch itself holds numbers that are not finite{_which(index, window)}"
    for name, parameter in trainer.model.named_parameters():
        if not _is_finite(parameter):
            return f"the parameter {name} was not finite before it"
    before = trainer.capture(None, before_first_step=True)
    try:
        with torch.compiler.set_stance("force_eager"), _watched(trainer.model) as found:
            for index, batch in enumerate(window.batches):
                trainer.optimizer.zero_grad()
                with trainer.engine.autocast():
                    output = trainer.training_step(trainer.engine.move(batch))
                loss = output.loss if isinstance(output, StepOutput) else output
                if not found and loss is not None and not _is_finite(loss):
                    return f"all layers' outputs are finite, the loss made of them is not{_which(index, window)}"
                if not found and loss is not None:
                    loss.backward()  # type: ignore[no-untyped-call]
                if found:
                    return f"{found[0]}{_which(index, window)}"
    except Exception as error:
        return f"running the step again ended in {type(error).__name__}: {error}"
    finally:
        before.restore()
    return "running the step again gave finite numbers, so it lies in its random numbers (dropout, augmentation)"


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """What is found not to be finite while the model runs, in the order in which it is computed."""
    found: list[str] = []
    handles: list[Any] = []

    def look_at_output(name: str, kind: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not _is_finite(output):
                found.append(f"the first bad layer is {name or 'the model'} ({kind}): its output is not finite")

        return hook

    def look_at_gradient(name: str) -> Any:
        def hook(parameter: Tensor) -> None:
            if not found and parameter.grad is not None and not _is_finite(parameter.grad):
                found.append(f"the first bad gradient, counted from the loss, is that of {name}")

        return hook

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(look_at_output(name, type(module).__name__)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            hook = look_at_gradient(name)
            handles.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(value: Any) -> bool:
    """Whether all floating-point tensors in a structure are."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_finite(item) for item in value)
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return True
    return bool(torch.isfinite(value.detach()).all())


def _which(index: int, window: batches.Window) -> str:
    return (
        f", in batch {index + 1} of the {len(window.batches)} that the step accumulates" if window.batches[1:] else ""
    )
