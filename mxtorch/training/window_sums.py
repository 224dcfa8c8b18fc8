"""The loss of several batches as that of one large batch, whose gradients are added up batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

from mxtorch.optim.scheduled import ScheduledOptim
from mxtorch.training.loss_weight import ADDS_UP, AddsUp, CountedTargets, Weight


class WindowSums:
    """Weighs the losses of a window's batches.

    The window's loss is `sum(weight * loss) / sum(weight)`; the divisor is known after the last forward pass. Each loss
    is divided by what the window would weigh if all batches were as the first one, and `finish` corrects gradients and
    loss. Where batches weigh as many samples as they have, there is nothing to correct, and the numbers are those of
    a division by the samples of the window, bit for bit.

    Args:
        samples: Of the window.
        on_device: Leave weights that are tensors on their device, and wait for none of them.
    """

    def __init__(self, samples: int, *, on_device: bool) -> None:
        self._samples, self._on_device = samples, on_device
        self._expected: float | Tensor | None = None  # what the window weighs if all batches are as the first one
        self._sum: float | Tensor = 0  # of the weights
        self._adds_up = False
        self._loss: Tensor | None = None

    @property
    def weight(self) -> Weight:
        """What the window's loss weighs beside those of other windows."""
        return ADDS_UP if self._adds_up else self._sum

    def add(self, loss: Tensor, weight: Weight, size: int) -> Tensor:
        """The share of a batch in the window's loss, to call `backward` on.

        Args:
            loss: Of the batch, a scalar tensor.
            weight: What it is a mean of.
            size: The samples of the batch.
        """
        if isinstance(weight, AddsUp):
            self._adds_up = True
        else:
            loss = self._weighted(loss, weight, size)
        detached = loss.detach()
        self._loss = detached if self._loss is None else self._loss + detached
        return loss

    def finish(self, optimizer: ScheduledOptim) -> Tensor | None:
        """Correct the gradients; returns the window's loss, None where its batches weigh nothing."""
        if self._loss is None or self._adds_up or self._expected is None:
            return self._loss
        if isinstance(self._expected, Tensor) or isinstance(self._sum, Tensor):
            total = torch.as_tensor(self._sum, device=self._loss.device)
            factor = torch.where(total > 0, self._expected / total, 0.0)
        elif self._sum == 0:
            return None
        elif self._sum == self._expected:
            return self._loss
        else:
            factor = torch.tensor(self._expected / self._sum, dtype=torch.float64)
        scale_gradients(optimizer, factor)
        return self._loss * factor.to(self._loss.device, self._loss.dtype)

    def _weighted(self, loss: Tensor, weight: float | Tensor | CountedTargets, size: int) -> Tensor:
        if isinstance(weight, CountedTargets):
            weight = weight.value()
        if isinstance(weight, Tensor):
            weight = _wide(weight.detach()) if self._on_device else weight.item()
        self._sum = self._sum + weight
        if isinstance(weight, Tensor):
            weight = weight.to(loss.device)
            if self._expected is None:
                self._expected = torch.where(weight > 0, weight * self._samples / size, float(self._samples))
            loss = torch.where(weight > 0, loss, torch.zeros_like(loss))
            return loss * (weight / self._expected).to(loss.dtype)
        if self._expected is None:
            self._expected = weight * self._samples / size if weight > 0 else float(self._samples)
        share = weight / self._expected
        if isinstance(share, Tensor):  # an earlier batch of the window had its weight on the device
            return loss * share.to(loss.dtype)
        return loss if share == 1 else loss * share


def scale_gradients(optimizer: ScheduledOptim, factor: Tensor) -> None:
    """Multiply all gradients of an optimizer's parameters by a number; of sharded ones this process's part."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if (gradient := parameter.grad) is not None:
                gradient = getattr(gradient, "_local_tensor", gradient)
                gradient.mul_(factor.to(gradient.device, gradient.dtype))


def _wide(weight: Tensor) -> Tensor:
    """A weight with as many digits as its device has."""
    return weight.to(torch.float32 if weight.device.type == "mps" else torch.float64)
