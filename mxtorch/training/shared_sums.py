"""The loss of a window over several processes as that of one large batch; `window_sums` does it for one process."""

from __future__ import annotations

import torch
from torch import Tensor

from mxtorch.engines.base import Engine
from mxtorch.optim.scheduled import ScheduledOptim
from mxtorch.training.loss_weight import ADDS_UP, AddsUp, CountedTargets, Weight
from mxtorch.training.window_sums import scale_gradients


class SharedSums:
    """Weighs the losses of the batches of a window on all processes.

    The window's loss is `sum(weight * loss) / sum(weight)` over batches and processes, while the engine gives the mean
    of the processes' gradients. So each loss is multiplied by what it weighs beside the mean weight of a process's
    window. That mean is known before any gradient is computed where the window has one batch. Where it has several, it
    is taken to be as many times that of the first batches, and `finish` corrects the gradients where that was wrong.

    Args:
        engine: Adds up over the processes.
        batches: Of the window.
        held_back: Gradients are exchanged after `finish`, so that nothing is added up before: a process whose memory is
            full must not leave the others waiting.

    Attributes:
        weight: After `finish`, what the window's loss weighs on all processes together.
    """

    def __init__(self, engine: Engine, batches: int, *, held_back: bool) -> None:
        self.weight: Weight = 0
        self._engine, self._batches, self._held_back = engine, batches, held_back
        self._first = True
        self._adds_up = False
        self._expected: float | Tensor = 1.0  # the weight of one process's window, the same on all
        self._added: list[tuple[float | Tensor, float | Tensor]] = []  # weight, weight * loss: not added up yet
        self._total: Tensor | None = None

    def add(self, loss: Tensor | None, weight: Weight, size: int) -> Tensor | None:
        """The share of a batch in the window's loss, to call `backward` on.

        Args:
            loss: Of the batch, a scalar tensor; None where it has none.
            weight: What it is a mean of.
            size: The samples of the batch; not needed here.
        """
        first, self._first = self._first, False
        if loss is None:
            weight = 0.0
        if isinstance(weight, AddsUp):
            self._adds_up, weight = True, 1.0
        if isinstance(weight, CountedTargets):
            weight = weight.value()
        if isinstance(weight, Tensor):
            weight = weight.detach().double() if self._engine.asynchronous else weight.item()
        value: float | Tensor = 0.0
        if loss is not None:
            value = loss.detach().double() * weight
            if isinstance(weight, Tensor):  # the mean over no targets at all is NaN
                value = torch.where(weight > 0, value, 0.0)
        self._added.append((weight, value))
        if first and not self._held_back:
            self._total = self._sum_up()
            mean = self._total[0] * (self._batches / self._engine.world_size)
            if self._engine.asynchronous:
                self._expected = torch.where(mean > 0, mean, 1.0)
            else:
                self._expected = mean.item() or 1.0
        if loss is None:
            return None
        if self._adds_up:
            return loss * self._engine.world_size
        share = weight / self._expected
        if isinstance(share, Tensor):
            return torch.where(share > 0, loss, torch.zeros_like(loss)) * share.to(loss.device, loss.dtype)
        return loss if share == 1 else loss * share

    def finish(self, optimizer: ScheduledOptim) -> Tensor | None:
        """Add up over all processes, and correct the gradients; returns the window's loss, None where it has none."""
        total = self._total if self._total is not None and self._batches == 1 else self._sum_up()
        if self._total is not None and total is not self._total:
            total = total + self._total
        weight, loss, adds_up = total.unbind()
        wanted = self._expected * self._engine.world_size
        if self._adds_up:
            self.weight = ADDS_UP
            return loss.float()
        if self._engine.asynchronous:
            self.weight = torch.where(adds_up > 0, 1.0, weight)
            if self._batches > 1 or self._held_back:
                factor = torch.where(weight > 0, wanted / weight, 0.0)
                scale_gradients(optimizer, torch.where(adds_up > 0, 1.0, factor))
            return torch.where(adds_up > 0, loss, loss / weight).float()
        if adds_up > 0:  # on other processes; here no batch had a loss
            self.weight = ADDS_UP
            return loss.float()
        self.weight = weight.item()
        if self.weight == 0:
            return None
        if self.weight != wanted:
            scale_gradients(optimizer, wanted / weight)
        return (loss / weight).float()

    def _sum_up(self) -> Tensor:
        """Of what was added since, over all processes: the weights, the weighted losses, and whether losses are sums.

        A process whose batches have no loss learns the last from the others.

        Returns:
            float64 [3]; the third is above 0 where losses are sums.
        """
        added, self._added = self._added, []
        weights: float | Tensor = sum((weight for weight, _ in added), 0.0)
        values: float | Tensor = sum((value for _, value in added), 0.0)
        return self._engine.total(weights, values, float(self._adds_up))
