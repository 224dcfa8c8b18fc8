"""Numbers gone bad: told without waiting for the device, kept out of the weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

POLICIES = ("raise", "skip", "rollback")
# fp16 halves its scale on each overflow, from 2**16 down, and one bad sample spoils one step: more in a row are a
# model that has gone bad, which skipping does not mend.
MOST_SKIPS_IN_A_ROW = 40


class BadNumberError(FloatingPointError):
    """A loss or gradient that is not finite; no weight has changed."""


def mark_bad_gradients(gradients: Iterable[Tensor], found: Tensor) -> None:
    """Set `found`, one float, to 1 if a gradient holds NaN or an infinity. Nothing is waited for.

    It is the check that torch's GradScaler makes, with a scale of 1: one kernel for all tensors of a kind.
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
        torch._amp_foreach_non_finite_check_and_unscale_(tensors, mine, _one(device))
        if mine is not found:
            found.copy_(torch.maximum(found, mine.to(found.device)))


@functools.cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), dtype=torch.float32, device=device)


def step_unless(bad: Tensor, optimizer: Optimizer, step: Callable[[], Any], *, keep: bool) -> None:
    """Take a step on an accelerator that leaves no mark where `bad`, a float on the device, is 1.

    Fused optimizers look at it themselves. The others are undone from a copy, if `keep` says that its memory, that of
    parameters and optimizer state, is to be spent.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = None, bad  # type: ignore[attr-defined]
        try:
            step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
        return
    if not keep:
        step()
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if any(p not in optimizer.state for p in parameters) and bool(bad):
        return  # state is made by the first step, which is therefore waited for
    live = [*parameters, *(value for p in parameters for value in optimizer.state.get(p, {}).values())]
    tensors = [value for value in live if isinstance(value, Tensor)]
    before = [tensor.detach().clone() for tensor in tensors]
    step()
    put_back(bad, tensors, before)


@torch.no_grad()
def put_back(bad: Tensor, tensors: list[Tensor], before: list[Tensor]) -> None:
    """Give the tensors their values of before where `bad` is 1, without looking at it."""
    flag = bad.reshape(()) > 0
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(flag.to(tensor.device), old, tensor))


class KeptBuffers:
    """Buffers as they were before a step, for a step that is skipped: BatchNorm has seen its batch by then."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._places = [(part._buffers, name) for root in modules for part in root.modules() for name in part._buffers]
        self._kept: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = []

    def keep(self) -> None:
        """Note the values."""
        self._kept = []
        for buffers, name in self._places:
            buffer = buffers[name]
            if buffer is not None:
                self._kept.append((buffers, name, buffer, buffer.detach().clone()))

    def restore(self, bad: Tensor | None = None) -> None:
        """Put them back; with `bad`, a float on the device, where it is 1."""
        if bad is not None:
            put_back(bad, [buffers[name] for buffers, name, _, _ in self._kept], [old for *_, old in self._kept])  # type: ignore[misc]
            return
        for buffers, name, buffer, old in self._kept:
            buffers[name] = buffer.copy_(old)
