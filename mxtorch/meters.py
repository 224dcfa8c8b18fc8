"""Averages that do not make an accelerator wait."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor


class LossMeter:
    """The mean training loss over an epoch and since the last reading, weighted by samples; and the speed.

    Losses stay on their device until they are read, all at once.

    Args:
        first_step: The number of the first step, to name one whose loss is not finite.
    """

    def __init__(self, first_step: int) -> None:
        self.count = 0
        self._next_step = first_step
        self._losses: list[Tensor] = []
        self._sizes: list[int] = []
        self._epoch_sum = 0.0
        self._epoch_samples = 0
        self._started = self._last_read = time.perf_counter()

    def add(self, loss: Tensor, samples: int) -> None:
        """Note a step's loss, a scalar tensor."""
        self._losses.append(loss)
        self._sizes.append(samples)
        self.count += 1

    @property
    def unread(self) -> bool:
        """Whether steps were added since the last reading."""
        return bool(self._losses)

    def read(self) -> dict[str, float]:
        """Mean loss and samples a second since the last reading.

        Raises:
            FloatingPointError: A loss was not finite.
        """
        losses = torch.stack(self._losses).tolist()
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise FloatingPointError(not_finite_message(loss, self._next_step + offset))
        weighted = sum(loss * size for loss, size in zip(losses, self._sizes, strict=True))
        samples = sum(self._sizes)
        now = time.perf_counter()
        figures = {
            "train/loss": weighted / samples,
            "samples_per_second": samples / max(now - self._last_read, 1e-9),
        }
        self._epoch_sum += weighted
        self._epoch_samples += samples
        self._next_step += len(losses)
        self._losses, self._sizes, self._last_read = [], [], now
        return figures

    def finish(self) -> dict[str, float]:
        """Mean loss and samples a second of the whole epoch."""
        if self.unread:
            self.read()
        seconds = max(time.perf_counter() - self._started, 1e-9)
        return {
            "train/loss": self._epoch_sum / self._epoch_samples,
            "samples_per_second": self._epoch_samples / seconds,
        }


def not_finite_message(loss: float, step: int) -> str:
    """What to tell of a loss that is NaN or infinite."""
    return (
        f"the loss of step {step} is {loss}; lower the learning rate (find_lr suggests one), clip_grad_norm, or look "
        "for NaN in the data"
    )
