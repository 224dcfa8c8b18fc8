"""Rates that fall along a power or a fraction."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from mxtorch.schedules.base import Schedule, rise, usual_warmup


@dataclasses.dataclass(frozen=True)
class Polynomial(Schedule):
    """From 1 to `end_factor` as a power of the part of the run that is left, after a warm-up if there is one.

    The values are those of torch's `PolynomialLR`, of timm's `PolyLRScheduler` (with `warmup_prefix=True`), and of
    `get_polynomial_decay_schedule_with_warmup` of transformers, whose `lr_end` is a rate and not a part of the base
    rate.

    Args:
        total_steps: Steps until the end, with those of the warm-up; the run's when left out.
        power: The exponent; 1 gives a straight line.
        end_factor: The last multiplier.
        warmup_steps: Steps of a linear warm-up.
        start_factor: The first multiplier of the warm-up.

    Example:
        >>> [Polynomial(total_steps=4)(step) for step in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    total_steps: int | None = None
    power: float = 1.0
    end_factor: float = 0.0
    warmup_steps: int = 0
    start_factor: float = 0.0

    def __post_init__(self) -> None:
        self._check_length("total_steps")
        self._check_number("power")
        self._check_number("end_factor", high=1.0)
        self._check_warmup()

    def __call__(self, step: int) -> float:
        """The multiplier."""
        total_steps, warmup_steps = self._filled("total_steps"), self.warmup_steps
        if step < warmup_steps:
            return rise(self.start_factor, step, warmup_steps)
        left = max(1 - (step - warmup_steps) / (total_steps - warmup_steps), 0.0)
        return float(self.end_factor + (1 - self.end_factor) * left**self.power)


@dataclasses.dataclass(frozen=True)
class REX(Schedule):
    """The reflected exponential: slowly down, then ever faster (Chen et al. 2021, arXiv 2107.04197).

    With p the part of the run that is over, the multiplier is (1 - p) / (1 - p / 2).

    Args:
        total_steps: Steps until the end; the run's when left out.
        end_factor: The last multiplier.

    Example:
        >>> [round(REX(total_steps=4)(step), 3) for step in range(6)]
        [1.0, 0.857, 0.667, 0.4, 0.0, 0.0]
    """

    total_steps: int | None = None
    end_factor: float = 0.0

    def __post_init__(self) -> None:
        self._check_length("total_steps")
        self._check_number("end_factor", high=1.0)

    def __call__(self, step: int) -> float:
        """The multiplier."""
        over = min(step / self._filled("total_steps"), 1.0)
        return float(self.end_factor + (1 - self.end_factor) * (1 - over) / (1 - over / 2))


@dataclasses.dataclass(frozen=True)
class InverseSquareRoot(Schedule):
    """A linear warm-up, then down with the root of the steps (Vaswani et al. 2017, arXiv 1706.03762, sec. 5.3).

    It has no end, so the run may be made longer. The values are those of `get_inverse_sqrt_schedule` of transformers.

    Args:
        warmup_steps: Steps of the warm-up; a twentieth of the run, rounded up, when left out.
        timescale: The rate is halved within three times so many steps after the warm-up. When left out, the steps of
            the warm-up, or 10,000 without one.
        start_factor: The first multiplier of the warm-up.

    Example:
        >>> [round(InverseSquareRoot(warmup_steps=2)(step), 3) for step in (0, 1, 2, 4, 8)]
        [0.0, 0.5, 1.0, 0.707, 0.5]
    """

    warmup_steps: int | None = None
    timescale: int | None = None
    start_factor: float = 0.0

    def __post_init__(self) -> None:
        self._check_length("timescale")
        self._check_warmup()

    def __call__(self, step: int) -> float:
        """The multiplier."""
        warmup_steps: int = self._filled("warmup_steps")
        if step < warmup_steps:
            return rise(self.start_factor, step, warmup_steps)
        timescale = self.timescale or warmup_steps or 10_000
        return 1 / math.sqrt((step - warmup_steps + timescale) / timescale)

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        return {"warmup_steps": usual_warmup(total_steps)}
