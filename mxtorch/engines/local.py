"""Plain torch on one device."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mxtorch._checks import closest
from mxtorch._structure import move_tensors
from mxtorch.engines.base import Precision, StepResult
from mxtorch.engines.memory_format import convert
from mxtorch.engines.nonfinite import BadNumberError, StepUnless, mark_bad_gradients
from mxtorch.optim.scheduled import ScheduledOptim

AUTOCAST_TYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
_log = logging.getLogger("mxtorch")
_TAKEN = StepResult(True, None)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


class LocalEngine:
    """Plain torch on one device: the default implementation of `Engine`.

    Args:
        device: `"auto"` (CUDA, else MPS, else the CPU), a name such as `"cuda:1"`, or a `torch.device`.
        precision: `"fp32"`, `"bf16"` (autocast), or `"fp16"` (autocast with a gradient scaler). Parameters stay
            in float32.
        channels_last: Whether images and convolution weights have the channels-last memory format. `"auto"` uses the
            format for networks with 2-d convolutions if it is faster: on the CPU, and on CUDA in half precision. It is
            tried with the first batch. If the network does not work in the format (for example because it calls
            `.view` after a convolution), the default format stays. With True, such a network raises an error.
        compile: True, or a dictionary of arguments for `torch.nn.Module.compile`, which compiles in place and so
            does not change the names in the state_dict.

    Attributes:
        device: The device of the model and the batches.
        precision: The argument.
        asynchronous: Whether reading a number from a tensor waits for queued work. It is False only on the CPU.
        is_main: True, because there is one process.
        memory_format: The memory format of 4-d inputs and weights. None does not change their format; `"auto"` starts
            with None before the first batch.

    Raises:
        ValueError: The device is unknown or not available, the precision is unknown, or `channels_last` is not one of
            its three values.

    Example:
        >>> engine = LocalEngine("cpu", "bf16")
        >>> engine.device, engine.asynchronous, engine.agree(False)
        (device(type='cpu'), False, False)
    """

    is_main = True
    rank = 0
    world_size = 1
    dealt = 1
    shards = False
    splits_data = True
    # There is one process; the loop asks in every step, and this is the quickest answer.
    agree = agree_soon = staticmethod(bool)

    def __init__(
        self,
        device: str | torch.device = "auto",
        precision: Precision = "fp32",
        *,
        channels_last: bool | Literal["auto"] = "auto",
        compile: bool | dict[str, Any] = False,
    ) -> None:
        self.device = resolve_device(device)
        if precision not in AUTOCAST_TYPES:
            raise ValueError(f"precision: got {precision!r}{closest(str(precision), AUTOCAST_TYPES)}")
        self.precision: Precision = precision
        if channels_last not in (True, False, "auto"):
            raise ValueError(f"channels_last: got {channels_last!r}; give True, False or 'auto'")
        self.asynchronous = self.device.type != "cpu"
        if self.asynchronous:
            _keep_garbage_of_forked_processes()
        self.memory_format: torch.memory_format | None = None
        self._channels_last = channels_last
        self._wants_channels_last = False  # True with "auto" for a suitable network, until a trial fails
        self._tried: set[str] = set()  # the kinds of steps that work in the memory format
        self._prepared: tuple[nn.Module, tuple[ScheduledOptim, ...]] | None = None
        self._compile = compile
        self._autocast_type = AUTOCAST_TYPES[precision]
        self._no_context = contextlib.nullcontext()
        self._moves = True
        self._scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None
        self._found = torch.zeros((), dtype=torch.float32, device=self.device)  # becomes 1 if a gradient is not finite
        self._one = torch.ones((), dtype=torch.float32, device=self.device)
        self._step_unless = StepUnless()

    def prepare(self, model: nn.Module, loss: nn.Module | None, *optimizers: ScheduledOptim) -> None:
        """Move the model, a loss with parameters, and the state of the optimizers to the device, in place."""
        model.to(self.device)
        self._prepared = (model, optimizers)
        if loss is not None:
            loss.to(self.device)
        for optimizer in optimizers:
            if optimizer.state:
                optimizer.load_state_dict(optimizer.state_dict())  # torch moves loaded state to the parameter's device
        if self._compile:
            model.compile(**(self._compile if isinstance(self._compile, dict) else {}))
        self._wants_channels_last = self._channels_last == "auto" and self._profits_from_channels_last(model)
        if self._wants_channels_last:  # an earlier trainer may have left the model in channels-last
            convert(model, optimizers, torch.contiguous_format)
        self._set_memory_format(torch.channels_last if self._channels_last is True else None)

    def needs_trial(self, step: str) -> bool:
        """Whether a kind of step must still be tried in the memory format that `"auto"` has chosen."""
        return step not in self._tried and self._wants_channels_last

    def begin_trial(self, step: str) -> bool:
        """Switch to the memory format if `needs_trial(step)`; returns whether it does."""
        if not self.needs_trial(step):
            return False
        self._set_memory_format(torch.channels_last)
        return True

    def accept_trial(self, step: str) -> None:
        """Record that a kind of step works in the memory format."""
        self._tried.add(step)

    def suspend_memory_format(self) -> bool:
        """Return to the default memory format, unless the user chose another; returns whether the format changed."""
        if not self._wants_channels_last or self.memory_format is None:
            return False
        self._set_memory_format(None)
        return True

    def resume_memory_format(self) -> None:
        """Undo `suspend_memory_format`."""
        self._set_memory_format(torch.channels_last)

    def reject_memory_format(self, step: str, error: Exception) -> None:
        """Use the default memory format from now on, and log this."""
        self._wants_channels_last = False
        _log.warning(
            "%s does not work in the channels-last memory format (%s), so the network stays in the default format; "
            "give channels_last=False to skip this trial",
            step,
            error.__cause__ or error,
        )

    def move(self, batch: Any) -> Any:
        """The batch with its tensors on the device, and images (4-d floats) in the memory format.

        Tuples, lists, mappings and data classes are searched for tensors. An object with a method `to`, such as
        `PackedSequence`, is moved by that method. Copies from pinned memory do not block.
        """
        return move_tensors(self._moved, batch, self.device) if self._moves else batch

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which forward passes run."""
        if self._autocast_type is None:
            return self._no_context
        return torch.autocast(self.device.type, dtype=self._autocast_type)

    def no_sync(self, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """A context that does nothing: there is no other process to exchange gradients with."""
        return self._no_context

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to those of the parameters, scaled in fp16."""
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def zero_grad(self, optimizer: ScheduledOptim) -> None:
        """Clear the gradients."""
        optimizer.zero_grad()

    def stand_in(self) -> Tensor | None:
        """None: there is no other process."""
        return None

    def exchange_gradients(self, optimizer: ScheduledOptim, loss: Tensor | None, *, held_back: bool) -> None:
        """Add the gradients of the loss; there is no other process."""
        if loss is not None:
            self.backward(loss)

    def total(self, *values: float | Tensor) -> Tensor:
        """The values themselves, float64 on the device: there is one process."""
        return scalars(values, self.device)

    def step(
        self,
        optimizer: ScheduledOptim,
        *,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        measure_norm: bool = False,
        on_nonfinite: str | None = None,
    ) -> StepResult:
        """Clip the gradients and take the step; see `Engine.step`.

        On an accelerator, the result has a flag on the device for a gradient that is not finite, so that the step does
        not wait. With `"skip"`, such a step has no effect. With the other policies, a fused optimizer (`fused=True`)
        takes neither this step nor a later one, until `forget_bad_steps`. fp16 needs no policy, because its scaler
        skips such steps.

        Gradients are looked at before their values are clipped, because clipping makes an infinite one finite.
        """
        looks = on_nonfinite is not None and self._scaler is None
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        elif looks and self.asynchronous:
            if on_nonfinite == "skip":  # one flag for each step; otherwise it stays 1, so that no later step is taken
                self._found.zero_()
            self._mark_bad(_gradients(optimizer))
        elif looks and clip_grad_value is not None:
            self._raise_if_bad(_gradients(optimizer))
        norm = None
        if clip_grad_value is not None:
            nn.utils.clip_grad_value_(_parameters(optimizer), clip_grad_value)
        if clip_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(_parameters(optimizer), clip_grad_norm)
        elif measure_norm:
            norm = nn.utils.get_total_norm(_gradients(optimizer))
        if self._scaler is not None:
            steps_before = optimizer.current_steps
            self._scaler.step(optimizer)
            self._scaler.update()
            return StepResult(optimizer.current_steps > steps_before, norm)
        if looks and self.asynchronous:
            self._step_unless(self._found, optimizer.optimizer, optimizer.step, undo=on_nonfinite == "skip")
            return StepResult(True, norm, self._found.clone())
        if looks and norm is not None:
            if not math.isfinite(value := norm.item()):
                raise BadNumberError(f"the norm of the gradients is {value}")
        elif looks and clip_grad_value is None:
            self._raise_if_bad(_gradients(optimizer))
        optimizer.step()
        return _TAKEN if norm is None else StepResult(True, norm)

    def reduce(self, value: Tensor, how: Literal["mean", "sum"] = "mean") -> Tensor:
        """The value itself, because there is one process."""
        return value

    def gather(self, value: Tensor) -> Tensor:
        """The value itself, because there is one process."""
        return value

    def broadcast(self, value: Any) -> Any:
        """The value itself: there is one process."""
        return value

    def gather_values(self, value: Any) -> list[Any]:
        """The value alone: there is one process."""
        return [value]

    def share(self, data: Any) -> Any:
        """The data themselves: there is one process."""
        return data

    def check_same(self, call: str, facts: Mapping[str, Any]) -> None:
        """Nothing: there is no other process."""

    def together(self) -> contextlib.AbstractContextManager[Any]:
        """Nothing: there is no other process."""
        return self._no_context

    def alone(self) -> contextlib.AbstractContextManager[Any]:
        """Nothing: there is no other process."""
        return self._no_context

    def whole_data(self) -> contextlib.AbstractContextManager[Any]:
        """Nothing: there is no other process."""
        return self._no_context

    def file_group(self) -> Any:
        """None: there is no other process."""
        return None

    def read_later(self, value: Tensor) -> Callable[[], float]:
        """Start to read a scalar tensor; see `Engine.read_later`."""
        return read_later(value)

    def forget_bad_steps(self) -> None:
        """Take steps again after a gradient that was not finite."""
        self._found.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The state of the gradient scaler of fp16; empty in other precisions."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if self._scaler is not None and state_dict:
            self._scaler.load_state_dict(state_dict)

    def capture(self) -> Callable[[], None]:
        """Copy the gradient scaler; returns a function that restores it."""
        scaler = self._scaler
        if scaler is None:
            return _nothing
        # All attributes are copied, because the state_dict does not hold the stage of an interrupted step.
        attributes = copy.deepcopy(vars(scaler))
        return lambda: vars(scaler).update(copy.deepcopy(attributes))

    def _moved(self, tensor: Tensor) -> Tensor:
        if self.memory_format is not None and tensor.ndim == 4 and tensor.is_floating_point():
            return tensor.to(self.device, non_blocking=True, memory_format=self.memory_format)
        return tensor.to(self.device, non_blocking=True)

    def _raise_if_bad(self, gradients: list[Tensor]) -> None:
        self._mark_bad(gradients)
        if self._found.item():
            self._found.zero_()
            raise BadNumberError("the loss is finite, its gradient is not")

    def _mark_bad(self, gradients: list[Tensor]) -> None:
        """Set the flag to 1 if a gradient is not finite, with the kernel of torch's GradScaler and a scale of 1."""
        try:
            if gradients:
                torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self._one)
        except RuntimeError:  # gradients of several kinds: sparse, complex, on several devices, of several types
            mark_bad_gradients(gradients, self._found)

    def _set_memory_format(self, memory_format: torch.memory_format | None) -> None:
        """Change the format of the model and of the later batches; None is the default format."""
        if memory_format is not self.memory_format and self._prepared is not None:
            model, optimizers = self._prepared
            convert(model, optimizers, memory_format or torch.contiguous_format)
        self.memory_format = memory_format
        self._moves = self.asynchronous or memory_format is not None

    def _profits_from_channels_last(self, model: nn.Module) -> bool:
        if self.device.type == "mps" or (self.device.type == "cuda" and self._autocast_type is None):
            return False
        return any(isinstance(module, _CONVOLUTIONS) for module in model.modules())


def scalars(values: tuple[float | Tensor, ...], device: torch.device) -> Tensor:
    """Numbers and scalar tensors as one tensor, float64 where the device has it."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    parts = [
        value.to(device, dtype, non_blocking=True).reshape(())
        if isinstance(value, Tensor)
        else torch.full((), value, dtype=dtype, device=device)  # a kernel, where a copy might wait
        for value in values
    ]
    return torch.stack(parts)


def _parameters(optimizer: ScheduledOptim) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _gradients(optimizer: ScheduledOptim) -> list[Tensor]:
    # Reading `.grad` costs about half a microsecond, so it is read once.
    return [grad for group in optimizer.param_groups for p in group["params"] if (grad := p.grad) is not None]


@functools.cache
def _keep_garbage_of_forked_processes() -> None:
    """Let no process that is forked from this one, as a loader's worker is, collect garbage that it inherits.

    Garbage may hold memory of the device, or memory pinned for it. To release it calls the driver, which no forked
    process may do: the worker would be aborted, at a moment that depends on when Python collects.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=gc.freeze)


def _nothing() -> None:
    """Restore nothing: there is no scaler."""


def read_later(value: Tensor) -> Callable[[], float]:
    """Start to read a scalar tensor of any device; see `Engine.read_later`."""
    if value.device.type != "cuda":
        return value.item
    host = torch.empty((), dtype=value.dtype, pin_memory=True)
    host.copy_(value.detach(), non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    # The current device of the process may be another one, so the stream is that of the value's device.
    copied.record(torch.cuda.current_stream(value.device))

    def read() -> float:
        copied.synchronize()
        return host.item()

    return read


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of a name.

    Raises:
        ValueError: The name is unknown, or this machine has no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        name = str(device).split(":")[0]
        raise ValueError(f"device: got {device!r}{closest(name, ('auto', *DEVICE_TYPES))}") from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count()
        if (resolved.index or 0) >= count:
            raise ValueError(f"device: got {device!r}, but torch sees {count} CUDA devices; give 'auto'")
    elif resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: got 'mps', which is not available here; give 'auto'")
    return resolved
