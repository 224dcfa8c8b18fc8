"""Numbers that are not finite: finding them without waiting for the device, and keeping them out of the weights."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# The largest number of skipped steps in a row. One bad sample spoils one step, and fp16 halves its scale, which starts
# at 2**16, at each overflow. After more skips in a row, the model itself is bad, and skipping does not help.
MOST_SKIPS_IN_A_ROW = 40

# The buffers of normalisation layers that depend on the batches.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class BadNumberError(FloatingPointError):
    """A loss or gradient that is not finite; no weight has changed."""


def mark_bad_gradients(gradients: Iterable[Tensor], found: Tensor) -> None:
    """Set `found`, a float tensor, to 1 if a gradient holds NaN or an infinity. The function does not wait.

    Args:
        gradients: Gradients of any device and type, including sparse and complex ones.
        found: A scalar tensor.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        if gradient.is_sparse:
            gradient = gradient._values()
        if gradient.is_complex():
            gradient = torch.view_as_real(gradient)
        kinds.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    for (device, _), tensors in kinds.items():
        mine = found if device == found.device else torch.zeros_like(found, device=device)
        one = torch.ones((), dtype=torch.float32, device=device)
        torch._amp_foreach_non_finite_check_and_unscale_(tensors, mine, one)
        if mine is not found:
            found.copy_(torch.maximum(found, mine.to(found.device)))


class StepUnless:
    """Takes an optimizer step on an accelerator, which changes nothing if a flag on the device is 1.

    The host does not read the flag, because reading it would wait for the device. A fused optimizer reads the flag on
    the device. The step of any other optimizer is undone from a copy. The host must read the flag in two cases: in the
    first step, in which an optimizer makes its state; and if an optimizer keeps a part of its state on the host, as
    torch's Adam does with the count of its steps (unless it has `fused=True` or `capturable=True`).
    """

    def __init__(self) -> None:
        self._stateless: weakref.WeakKeyDictionary[Optimizer, set[Tensor]] = weakref.WeakKeyDictionary()
        self._on_host: weakref.WeakSet[Optimizer] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        """The state with plain containers, because weak containers can't be pickled."""
        return {"stateless": dict(self._stateless), "on_host": list(self._on_host)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._stateless = weakref.WeakKeyDictionary(state["stateless"])
        self._on_host = weakref.WeakSet(state["on_host"])

    def __call__(self, bad: Tensor, optimizer: Optimizer, step: Callable[[], Any], *, undo: bool) -> None:
        """Take a step.

        Args:
            bad: The flag: a float tensor on the device.
            optimizer: The optimizer.
            step: The function that takes the step.
            undo: Whether the step of an optimizer that is not fused is undone. The copy for this takes as much memory
                as the parameters and the state.

        Raises:
            BadNumberError: The flag had to be read and is 1. The step was not taken.
        """
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.grad_scale, optimizer.found_inf = None, bad  # type: ignore[attr-defined]
            try:
                step()
            finally:
                del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
            return
        if not undo:
            step()
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        new = {p for p in parameters if not optimizer.state.get(p)} - self._stateless.get(optimizer, set())
        if new or optimizer in self._on_host:
            if bad.item():
                raise BadNumberError("the loss is finite, its gradient is not")
            settings = _settings(optimizer)
            step()
            self._stateless[optimizer] = {p for p in parameters if not optimizer.state.get(p)}
            state = [value for p in parameters for value in optimizer.state.get(p, {}).values() if value is not None]
            if settings != _settings(optimizer) or any(getattr(value, "device", None) != bad.device for value in state):
                self._on_host.add(optimizer)
            return
        places = [(optimizer.state[p], name) for p in parameters if p in optimizer.state for name in optimizer.state[p]]
        kept = [(state, name, state[name].clone()) for state, name in places if state[name] is not None]
        before = [parameter.detach().clone() for parameter in parameters]
        step()
        put_back(bad, [*parameters, *(state[name] for state, name, _ in kept)], [*before, *(old for *_, old in kept)])


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The settings of the groups, without those that a schedule sets. Some optimizers count their steps there."""
    scheduled = ("params", "lr", "momentum", "betas")
    return [{name: value for name, value in group.items() if name not in scheduled} for group in optimizer.param_groups]


@torch.no_grad()
def put_back(bad: Tensor, tensors: list[Tensor], before: list[Tensor]) -> None:
    """Give the tensors their old values if `bad` is 1. The flag is not read, so nothing waits for the device."""
    flag = bad > 0
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(flag, old, tensor))


class KeptBuffers:
    """Copies of the buffers before a step. A step that turns out to be bad has already changed batch normalisation.

    Args:
        modules: The modules that have the buffers.
        statistics_only: Copy only the running statistics of normalisation layers, which are small. Other buffers, such
            as masks, may be large.
    """

    def __init__(self, modules: Iterable[nn.Module], *, statistics_only: bool = False) -> None:
        self._places = [
            (part._buffers, name)
            for root in modules
            for part in root.modules()
            for name in part._buffers
            if not statistics_only or name in _STATISTICS
        ]
        self._live: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._pairs: list[tuple[list[Tensor], list[Tensor]]] = []  # copies and buffers, by type and device

    def __len__(self) -> int:
        """The number of buffers."""
        return len(self._places)

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the values."""
        live = [buffer for buffers, name in self._places if (buffer := buffers[name]) is not None]
        if len(live) != len(self._live) or not all(
            map(operator.is_, live, self._live)
        ):  # the first call, or other buffers
            self._live, self._kept = live, [buffer.detach().clone() for buffer in live]
            kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
            for kept, buffer in zip(self._kept, live, strict=True):
                pair = kinds.setdefault((buffer.dtype, buffer.device), ([], []))
                pair[0].append(kept)
                pair[1].append(buffer)
            self._pairs = list(kinds.values())
            return
        for kept_ones, live_ones in self._pairs:
            torch._foreach_copy_(kept_ones, live_ones)

    @torch.no_grad()
    def restore(self, bad: Tensor | None = None) -> None:
        """Restore the values; with `bad`, a float tensor on the device, only if it is 1."""
        kept = iter(zip(self._live, self._kept, strict=True))
        places = [(buffers, name) for buffers, name in self._places if buffers[name] is not None]
        if bad is not None:
            put_back(bad, [buffers[name] for buffers, name in places], self._kept)  # type: ignore[misc]
            return
        for (buffers, name), (live, values) in zip(places, kept, strict=True):
            buffers[name] = live.copy_(values)
