"""What went wrong in a step: the step is run once more, and the first bad layer is named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mxtorch._structure import tensors_in
from mxtorch.training.context import Context
from mxtorch.training.data import Window
from mxtorch.training.supervised import StepOutput

_ABOUT_A_LOSS = (
    "Lower the learning rate (find_lr suggests one), set clip_grad_norm, or look for NaN in the data; "
    "on_nonfinite='skip' passes over such steps"
)
_ABOUT_A_GRADIENT = (
    "Lower the learning rate (find_lr suggests one), or look for an operation whose derivative is infinite, such as "
    "a square root or a norm at 0, and add a small constant there: clipping makes no such gradient right; "
    "on_nonfinite='skip' passes over such steps"
)


_FINITE_AGAIN = "running the step again gave finite numbers, so it lies in its random numbers (dropout, augmentation)"


def not_finite(context: Context, window: Window, place: str, what: str, *, overwritten: bool = False) -> str:
    """The message for a step whose loss or gradient is not finite.

    Args:
        context: Its weights must be those before the step, or not far from them.
        window: The batches of the step.
        place: Where the step is, in words.
        what: The finding, as in `"the loss is nan"`.
        overwritten: Whether the weights are those after the step, with which it may give finite numbers.
    """
    engine = context.engine
    if engine.shards:  # no process can run the model alone
        return f"{place} is not finite: {what}; in which layer is not looked for with a sharded model. {advice(what)}"
    with engine.alone():
        found = first_bad_layer(context, window)
    everywhere = engine.gather_values(found)
    rank = next((rank for rank, other in enumerate(everywhere) if other != _FINITE_AGAIN), None)
    if rank is None and overwritten:
        return _not_known(place, what)
    rank = rank or 0
    where = everywhere[rank] if len(everywhere) == 1 else f"on process {rank}, {everywhere[rank]}"
    return f"{place} is not finite: {what}; {where}. {advice(what)}"


def not_finite_late(context: Context, window: Window | None, place: str, what: str) -> str:
    """As `not_finite`, for a step that an accelerator reported only some steps later.

    Args:
        context: It has taken further steps. A fused optimizer has held them back; any other optimizer has overwritten
            the weights, and spoilt them unless clipping made the gradient finite.
        window: The batches of the step, read again; None where that is not possible.
        place: Where the step is, in words.
        what: The finding.
    """
    agree = context.engine.agree
    if not agree(window is None) and not agree(not all(map(_is_finite, context.model.parameters()))):
        assert window is not None
        is_fused = getattr(context.optimizer.optimizer, "_step_supports_amp_scaling", False)
        return not_finite(context, window, place, what, overwritten=not is_fused)
    return _not_known(place, what)


def _not_known(place: str, what: str) -> str:
    return (
        f"{place} is not finite: {what}. Its weights were overwritten before the device was read, so the layer is not "
        f"known: a fused optimizer (fused=True) keeps the weights. {advice(what)}"
    )


def first_bad_layer(context: Context, window: Window) -> str:
    """Run a step again, without its update, and name the layer where the first number is not finite.

    Everything is put back afterwards. The random numbers differ from those of the step: dropout drops other values.
    """
    for index, batch in enumerate(window.batches):
        if not _is_finite(batch):
            return f"the batch itself holds numbers that are not finite{_which(index, window)}"
    for name, parameter in context.model.named_parameters():
        if not _is_finite(parameter):
            return f"the parameter {name} was not finite before it"
    before = context.capture(before_first_step=True)
    try:
        with torch.compiler.set_stance("force_eager"), _watched(context.model) as found:
            for index, batch in enumerate(window.batches):
                context.optimizer.zero_grad()
                with context.engine.autocast():
                    output = context.training_step(context.engine.move(batch))
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
    return _FINITE_AGAIN


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Findings that are not finite while the model runs, in the order in which they are computed."""
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


def advice(what: str) -> str:
    """What to do about a finding: clipping helps against large gradients, not against infinite ones."""
    return _ABOUT_A_GRADIENT if "gradient" in what else _ABOUT_A_LOSS


def _is_finite(value: Any) -> bool:
    """Whether all floating-point tensors in a structure are finite."""
    numbers = (tensor for tensor in tensors_in(value) if tensor.is_floating_point() or tensor.is_complex())
    return all(bool(torch.isfinite(tensor.detach()).all()) for tensor in numbers)


def _which(index: int, window: Window) -> str:
    return (
        f", in batch {index + 1} of the {len(window.batches)} that the step accumulates" if window.batches[1:] else ""
    )
