"""Averages that do not make an accelerator wait."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from mxtorch.nonfinite import BadNumberError


class LossMeter:
    """The mean training loss over an epoch and since the last reading, weighted by samples; and the speed.

    Losses stay on their device until they are read, all at once.

    Args:
        first_step: The number of the first step, to name one that is not finite.

    Attributes:
        count: Steps of this epoch, skipped ones too.
        bad_step: The number of the first step that was found not to be finite.
    """

    def __init__(self, first_step: int) -> None:
        self.count = 0
        self.bad_step: int | None = None
        self._next_step = first_step
        self._losses: list[Tensor] = []
        self._sizes: list[int] = []
        self._bad: list[Tensor] = []
        self._epoch_sum = 0.0
        self._epoch_samples = 0
        self._started = self._last_read = time.perf_counter()

    def add(self, loss: Tensor, samples: int, bad: Tensor | None = None) -> None:
        """Note a step's loss, a scalar tensor; `bad`, a float on the device, is 1 where its gradient is not finite."""
        self._losses.append(loss)
        self._sizes.append(samples)
        if bad is not None:
            self._bad.append(bad)
        self.count += 1

    def skip(self) -> None:
        """Count a step that was skipped and has no loss."""
        self.count += 1
        self._next_step += 1

    @property
    def unread(self) -> bool:
        """Whether steps were added since the last reading."""
        return bool(self._losses)

    def read(self, *, skips: bool = False) -> tuple[dict[str, float], int]:
        """Mean loss and samples a second since the last reading, and how many steps were bad.

        Args:
            skips: Leave bad steps out of the mean; otherwise they raise.

        Raises:
            BadNumberError: A loss or gradient was not finite; `bad_step` has its number.
        """
        losses = torch.stack(self._losses).tolist() if self._losses else []
        flags = torch.stack(self._bad).tolist() if self._bad else [0.0] * len(losses)
        bad = [bool(flag) or not math.isfinite(loss) for loss, flag in zip(losses, flags, strict=True)]
        if any(bad) and not skips:
            offset = bad.index(True)
            self.bad_step = self._next_step + offset
            finite = math.isfinite(losses[offset])
            raise BadNumberError(
                "the loss is finite, its gradient is not" if finite else f"the loss is {losses[offset]}"
            )
        kept = [(loss, size) for loss, size, is_bad in zip(losses, self._sizes, bad, strict=True) if not is_bad]
        weighted = sum(loss * size for loss, size in kept)
        samples = sum(size for _, size in kept)
        now = time.perf_counter()
        figures = {
            "train/loss": weighted / samples if samples else math.nan,
            "samples_per_second": sum(self._sizes) / max(now - self._last_read, 1e-9),
        }
        self._epoch_sum += weighted
        self._epoch_samples += samples
        self._next_step += len(losses)
        self._losses, self._sizes, self._bad, self._last_read = [], [], [], now
        return figures, sum(bad)

    def finish(self) -> dict[str, float]:
        """Mean loss and samples a second of the whole epoch, all of which was read."""
        assert not self.unread
        seconds = max(time.perf_counter() - self._started, 1e-9)
        return {
            "train/loss": self._epoch_sum / self._epoch_samples if self._epoch_samples else math.nan,
            "samples_per_second": self._epoch_samples / seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """Sums and unread losses; times as what has passed."""
        now = time.perf_counter()
        return {
            "count": self.count,
            "next_step": self._next_step,
            "losses": torch.stack(self._losses) if self._losses else None,
            "bad": torch.stack(self._bad) if self._bad else None,
            "sizes": list(self._sizes),
            "sum": self._epoch_sum,
            "samples": self._epoch_samples,
            "elapsed": now - self._started,
            "since_read": now - self._last_read,
        }

    def load_state_dict(self, saved: dict[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was called, with losses on the device.

        Raises:
            ValueError: It is malformed.
        """
        kinds = dict.fromkeys(("count", "next_step", "samples"), int)
        numbers = kinds | dict.fromkeys(("sum", "elapsed", "since_read"), float)
        count = 0 if saved["losses"] is None else len(saved["losses"])
        flags = count if saved["bad"] is None else len(saved["bad"])
        if any(type(saved[name]) not in (kind, int) for name, kind in numbers.items()):
            raise ValueError("the sums of losses are malformed")
        if not len(saved["sizes"]) == count == flags or any(type(size) is not int for size in saved["sizes"]):
            raise ValueError(f"there are {count} losses and sizes {saved['sizes']!r}")
        now = time.perf_counter()
        self.count, self._next_step = saved["count"], saved["next_step"]
        self._losses = [] if saved["losses"] is None else list(saved["losses"].to(device).unbind())
        self._bad = [] if saved["bad"] is None else list(saved["bad"].to(device).unbind())
        self._sizes = list(saved["sizes"])
        self._epoch_sum, self._epoch_samples = saved["sum"], saved["samples"]
        self._started, self._last_read = now - saved["elapsed"], now - saved["since_read"]
