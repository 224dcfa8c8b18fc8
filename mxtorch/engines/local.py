"""Where, and in what precision, a step runs. The loop in `mxtorch.trainer` knows neither."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mxtorch import batches, nonfinite
from mxtorch._validation import closest
from mxtorch.optim import ScheduledOptim

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


class StepResult(NamedTuple):
    """What an optimizer step did.

    Attributes:
        taken: Whether it was taken: fp16 skips an overflow, and `on_nonfinite="skip"` a bad gradient.
        gradient_norm: The norm of the gradient, where it was measured.
        bad: On an accelerator, a float on the device that is 1 where the gradient is not finite; nobody has looked.
    """

    taken: bool
    gradient_norm: Tensor | None
    bad: Tensor | None = None


class LocalEngine:
    """Plain torch on one device.

    Args:
        device: `"auto"` (CUDA, else MPS, else the CPU), a name such as `"cuda:1"`, or a `torch.device`.
        precision: `"fp32"`, `"bf16"` (autocast), or `"fp16"` (autocast with a gradient scaler). Parameters stay
            in float32.
        channels_last: Put images and convolution weights into the channels-last memory format. `"auto"` does so
            for networks with 2-d convolutions where it pays: on the CPU, and on CUDA in half precision.
        compile: True or a dictionary of arguments for `torch.nn.Module.compile`, which compiles in place and so
            leaves the names in the state_dict alone.

    Attributes:
        device: Where the model and the batches are.
        scaler: The gradient scaler of fp16, else None.
        memory_format: Of 4-d inputs; None leaves them as they are.
        reads_are_free: Whether reading a number from a tensor waits for nothing, as on the CPU.
        compiles: Whether the model is compiled.

    Raises:
        ValueError: For an unknown or unavailable device, an unknown precision.
    """

    def __init__(
        self,
        device: str | torch.device = "auto",
        precision: str = "fp32",
        *,
        channels_last: bool | Literal["auto"] = "auto",
        compile: bool | dict[str, Any] = False,
    ) -> None:
        self.device = resolve_device(device)
        if precision not in PRECISIONS:
            raise ValueError(f"precision: got {precision!r}{closest(str(precision), PRECISIONS)}")
        self.precision = precision
        if channels_last not in (True, False, "auto"):
            raise ValueError(f"channels_last: got {channels_last!r}; give True, False or 'auto'")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            warnings.warn(
                "Several processes were started (WORLD_SIZE), and each trains a network of its own: mxtorch uses one "
                "device. Start a single process.",
                stacklevel=3,
            )
        self._channels_last = channels_last
        self._compile = compile
        self.compiles = bool(compile)
        self._autocast_type = PRECISIONS[precision]
        self._no_autocast = contextlib.nullcontext()
        self._moves = True
        self.reads_are_free = self.device.type == "cpu"
        self.memory_format: torch.memory_format | None = None
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None
        self._found = torch.zeros((), dtype=torch.float32, device=self.device)  # 1 once a gradient was not finite
        self._step_unless = nonfinite.StepUnless()

    def prepare(self, model: nn.Module, loss: nn.Module | None, *optimizers: ScheduledOptim) -> None:
        """Bring the model, a loss with parameters, and the optimizers' state to the device, in place."""
        if self._wants_channels_last(model):
            self.memory_format = torch.channels_last
            model.to(self.device).to(memory_format=torch.channels_last)
        else:
            model.to(self.device)
        if loss is not None:
            loss.to(self.device)
        for optimizer in optimizers:
            if not optimizer.state:
                continue
            optimizer.load_state_dict(optimizer.state_dict())  # torch casts loaded state to its parameter's device
        if self._compile:
            model.compile(**(self._compile if isinstance(self._compile, dict) else {}))
        self._moves = self.device.type != "cpu" or self.memory_format is not None

    def move(self, batch: batches.Batch) -> batches.Batch:
        """The batch on the engine's device."""
        return batches.move(batch, self.device, self.memory_format) if self._moves else batch

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which forward passes run."""
        if self._autocast_type is None:
            return self._no_autocast
        return torch.autocast(self.device.type, dtype=self._autocast_type)

    def read_later(self, value: Tensor) -> Callable[[], float]:
        """Begin to read a scalar tensor; what is returned waits for it and gives the number.

        `item()` waits for all work queued by then, this for the work up to here alone.
        """
        if self.device.type != "cuda":
            return value.item
        host = torch.empty((), dtype=value.dtype, pin_memory=True)
        host.copy_(value.detach(), non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()

        def read() -> float:
            copied.synchronize()
            return host.item()

        return read

    def backward(self, loss: Tensor) -> None:
        """Backpropagate, scaled when a gradient scaler is in use."""
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def step(
        self,
        optimizer: ScheduledOptim,
        *,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        measure_norm: bool = False,
        on_nonfinite: str | None = None,
    ) -> StepResult:
        """Clip the gradients, each value and then the norm of all, take the step.

        The norm is that before it is clipped, a scalar tensor on the device, measured when clipping or asked for.

        Args:
            optimizer: Its parameters have their gradients.
            clip_grad_norm: The norm to clip to.
            clip_grad_value: The absolute value to clip each element to, before that.
            measure_norm: Measure it also without clipping.
            on_nonfinite: What a gradient that is not finite means, one of `nonfinite.POLICIES`; None: nothing. Where
                reading is free it raises. Elsewhere the step is marked as bad; `"skip"` leaves out its effect, and
                a fused optimizer all effects from then on, until `forget_bad_steps`. fp16 has its own way: it skips.

        Raises:
            BadNumberError: A gradient is not finite; no parameter has changed.
        """
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        norm = None
        if clip_grad_value is not None:
            nn.utils.clip_grad_value_(_parameters(optimizer), clip_grad_value)
        if clip_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(_parameters(optimizer), clip_grad_norm)
        elif measure_norm:
            norm = nn.utils.get_total_norm([p.grad for p in _parameters(optimizer) if p.grad is not None])
        if self.scaler is None:
            if on_nonfinite is None:
                optimizer.step()
                return StepResult(True, norm)
            if self.reads_are_free:
                self._raise_if_bad(optimizer, norm)
                optimizer.step()
                return StepResult(True, norm)
            return StepResult(True, norm, self._step_on_accelerator(optimizer, skips=on_nonfinite == "skip"))
        steps_before = optimizer.current_steps
        self.scaler.step(optimizer)
        self.scaler.update()
        return StepResult(optimizer.current_steps > steps_before, norm)

    def forget_bad_steps(self) -> None:
        """Begin to look for bad gradients anew."""
        self._found.zero_()

    def _raise_if_bad(self, optimizer: ScheduledOptim, norm: Tensor | None) -> None:
        if norm is not None:
            if not math.isfinite(value := norm.item()):
                raise nonfinite.BadNumberError(f"the norm of the gradient is {value}")
            return
        nonfinite.mark_bad_gradients((p.grad for p in _parameters(optimizer) if p.grad is not None), self._found)
        if self._found.item():
            self._found.zero_()
            raise nonfinite.BadNumberError("the loss is finite, its gradient is not")

    def _step_on_accelerator(self, optimizer: ScheduledOptim, *, skips: bool) -> Tensor:
        if skips:  # each step by itself; otherwise a bad one ends the run, and holds back those that follow it
            self._found.zero_()
        nonfinite.mark_bad_gradients((p.grad for p in _parameters(optimizer) if p.grad is not None), self._found)
        self._step_unless(self._found, optimizer.optimizer, optimizer.step, undo=skips)
        return self._found.clone()

    def _wants_channels_last(self, model: nn.Module) -> bool:
        if self._channels_last != "auto":
            return self._channels_last
        if self.device.type == "mps" or (self.device.type == "cuda" and self._autocast_type is None):
            return False
        return any(isinstance(module, _CONVOLUTIONS) for module in model.modules())


def _parameters(optimizer: ScheduledOptim) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def resolve_device(device: str | torch.device) -> torch.device:
    """A device that exists here, from its name.

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
            raise ValueError(f"device: got {device!r}, but torch sees {count} CUDA devices; 'auto' takes what there is")
    elif resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: got 'mps', which is not available here; 'auto' takes what there is")
    return resolved
