"""Rates that rise at first, then stay, fall in a line, or stay and fall."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from mxtorch.schedules.base import Schedule, rise, usual_warmup

Shape = Literal["linear", "cosine", "1-sqrt"]
_SHAPES = ("linear", "cosine", "1-sqrt")


@dataclasses.dataclass(frozen=True)
class WarmupConstant(Schedule):
    """A linear warm-up, then 1: `get_constant_schedule_with_warmup` of transformers.

    Args:
        warmup_steps: Steps of the warm-up; a twentieth of the run, rounded up, when left out.
        start_factor: The first multiplier.

    Example:
        >>> [WarmupConstant(warmup_steps=2)(step) for step in range(4)]
        [0.0, 0.5, 1.0, 1.0]
    """

    warmup_steps: int | None = None
    start_factor: float = 0.0

    def __post_init__(self) -> None:
        self._check_warmup()

    def __call__(self, step: int) -> float:
        """The multiplier."""
        warmup_steps: int = self._filled("warmup_steps")
        return rise(self.start_factor, step, warmup_steps) if step < warmup_steps else 1.0

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        return {"warmup_steps": usual_warmup(total_steps)}


@dataclasses.dataclass(frozen=True)
class WarmupLinear(Schedule):
    """A linear warm-up, then down in a line: `get_linear_schedule_with_warmup`, the default of transformers' `Trainer`.

    Args:
        total_steps: Steps of both parts together; the run's when left out.
        warmup_steps: Steps of the warm-up; a twentieth of the run, rounded up, when left out. (The `Trainer` of
            transformers has none by default.)
        start_factor: The first multiplier of the warm-up.
        end_factor: The last multiplier.

    Example:
        >>> [WarmupLinear(total_steps=6, warmup_steps=2)(step) for step in range(8)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    total_steps: int | None = None
    warmup_steps: int | None = None
    start_factor: float = 0.0
    end_factor: float = 0.0

    def __post_init__(self) -> None:
        self._check_length("total_steps")
        self._check_number("end_factor", high=1.0)
        self._check_warmup()

    def __call__(self, step: int) -> float:
        """The multiplier."""
        total_steps, warmup_steps = self._filled("total_steps"), self._filled("warmup_steps")
        if step < warmup_steps:
            return rise(self.start_factor, step, warmup_steps)
        left = max(total_steps - step, 0) / (total_steps - warmup_steps)
        return float(self.end_factor + (1 - self.end_factor) * left)

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        total_steps = self.total_steps or total_steps
        return {"total_steps": total_steps, "warmup_steps": usual_warmup(total_steps)}


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Up, constant for most of the run, down at its end: a trapezoid (Hu et al. 2024, arXiv 2404.06395, sec. 4).

    A run can be stopped, prolonged or branched off while the rate is constant, and lowered when the end is decided. The
    values are those of `get_wsd_schedule` of transformers, whose decay is a cosine by default.

    Args:
        total_steps: Steps of the three parts together; the run's when left out.
        warmup_steps: Steps of the warm-up; a twentieth of the run, rounded up, when left out.
        decay_steps: Steps of the decay; a fifth of the run, rounded up, when left out, as Hagele et al. (2024, arXiv
            2405.18392, sec. 4) found enough.
        start_factor: The first multiplier of the warm-up.
        end_factor: The last multiplier.
        warmup: The form of the rise: `"linear"`, `"cosine"` or `"1-sqrt"`.
        decay: The form of the fall, likewise; `"1-sqrt"` falls fast at first.

    Example:
        >>> schedule = WarmupStableDecay(total_steps=8, warmup_steps=2, decay_steps=4)
        >>> [schedule(step) for step in range(9)]
        [0.0, 0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    total_steps: int | None = None
    warmup_steps: int | None = None
    decay_steps: int | None = None
    start_factor: float = 0.0
    end_factor: float = 0.0
    warmup: Shape = "linear"
    decay: Shape = "linear"

    def __post_init__(self) -> None:
        self._check_length("total_steps", "decay_steps")
        self._check_number("end_factor", high=1.0)
        self._check_warmup()
        self._check_choice("warmup", _SHAPES)
        self._check_choice("decay", _SHAPES)
        if None not in (self.total_steps, self.warmup_steps, self.decay_steps) and self._stable_end < (
            self.warmup_steps or 0
        ):
            raise ValueError(
                f"decay_steps: got {self.decay_steps}, and {self.warmup_steps} of the warm-up; give no more than "
                f"total_steps together, {self.total_steps}"
            )

    def __call__(self, step: int) -> float:
        """The multiplier."""
        total_steps, decay_steps = self._filled("total_steps"), self._filled("decay_steps")
        warmup_steps: int = self._filled("warmup_steps")
        if step < warmup_steps:  # a fall, seen from its end
            return self.start_factor + (1 - self.start_factor) * _fall(self.warmup, 1 - step / warmup_steps)
        over = min(max(step - self._stable_end, 0) / decay_steps, 1.0) if step < total_steps else 1.0
        return self.end_factor + (1 - self.end_factor) * _fall(self.decay, over)

    @property
    def _stable_end(self) -> int:
        return int(self._filled("total_steps") - self._filled("decay_steps"))

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        total_steps = self.total_steps or total_steps
        warmup_steps = usual_warmup(total_steps) if self.warmup_steps is None else self.warmup_steps
        decay_steps = max(min(math.ceil(total_steps / 5), total_steps - warmup_steps), 1)
        if self.decay_steps is not None:
            warmup_steps = max(min(warmup_steps, total_steps - self.decay_steps), 0)
        return {"total_steps": total_steps, "warmup_steps": warmup_steps, "decay_steps": decay_steps}


def _fall(shape: str, over: float) -> float:
    """From 1 to 0, at a part of the way."""
    if shape == "linear":
        return 1 - over
    return (1 + math.cos(math.pi * over)) / 2 if shape == "cosine" else 1 - math.sqrt(over)
