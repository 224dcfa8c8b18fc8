"""Rates that fall along a cosine."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from mxtorch.schedules.base import Schedule, cosine, rise, usual_warmup


@dataclasses.dataclass(frozen=True)
class CosineAnnealing(Schedule):
    """Half a cosine from 1 to `end_factor` (Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts).

    Args:
        total_steps: Steps from top to bottom; the run's when left out.
        end_factor: The last multiplier.

    Example:
        >>> [round(CosineAnnealing(total_steps=4)(step), 3) for step in range(6)]
        [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """

    total_steps: int | None = None
    end_factor: float = 0.0

    def __post_init__(self) -> None:
        self._check_length("total_steps")
        self._check_number("end_factor", high=1.0)

    def __call__(self, step: int) -> float:
        """The multiplier."""
        return cosine(1.0, self.end_factor, min(step / self._filled("total_steps"), 1.0))


@dataclasses.dataclass(frozen=True)
class WarmupCosine(Schedule):
    """A linear warm-up (Goyal et al. 2017, arXiv 1706.02677, sec. 2.2), then `CosineAnnealing`.

    The values are those of torch's `SequentialLR` of `LinearLR` and `CosineAnnealingLR`. With `start_factor=0` they are
    those of `get_cosine_schedule_with_warmup` of transformers.

    Args:
        total_steps: Steps of both parts together; the run's when left out.
        warmup_steps: Steps of the warm-up; a twentieth of the run, rounded up, when left out.
        start_factor: The first multiplier of the warm-up.
        end_factor: The last multiplier of the cosine.

    Example:
        >>> schedule = WarmupCosine(total_steps=6, warmup_steps=2, start_factor=0.5)
        >>> [round(schedule(step), 3) for step in range(7)]
        [0.5, 0.75, 1.0, 0.854, 0.5, 0.146, 0.0]
    """

    total_steps: int | None = None
    warmup_steps: int | None = None
    start_factor: float = 0.01
    end_factor: float = 0.0

    def __post_init__(self) -> None:
        self._check_length("total_steps")
        self._check_warmup()
        self._check_number("end_factor", high=1.0)

    def __call__(self, step: int) -> float:
        """The multiplier."""
        total_steps, warmup_steps = self._filled("total_steps"), self._filled("warmup_steps")
        if step < warmup_steps:
            return rise(self.start_factor, step, warmup_steps)
        return cosine(1.0, self.end_factor, min((step - warmup_steps) / (total_steps - warmup_steps), 1.0))

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        total_steps = self.total_steps or total_steps
        return {"total_steps": total_steps, "warmup_steps": usual_warmup(total_steps)}


@dataclasses.dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Half a cosine, begun again and again (SGDR, Loshchilov and Hutter 2016, arXiv 1608.03983).

    The values are those of torch's `CosineAnnealingWarmRestarts` and of timm's `CosineLRScheduler` (with
    `warmup_prefix=True`). With equal cycles and a `cycle_limit` they are those of
    `get_cosine_with_hard_restarts_schedule_with_warmup` of transformers.

    Args:
        cycle_steps: Steps of the first cycle, not necessarily a whole number. When left out, `cycle_limit` cycles, or
            three, fill the run.
        cycle_mul: Each cycle is longer than the one before by this factor; 2 as in the paper doubles it.
        cycle_decay: The highest multiplier of each cycle is that of the one before times this.
        cycle_limit: Cycles after which `end_factor` is kept; None goes on.
        end_factor: The last multiplier of a cycle.
        warmup_steps: Steps of a linear warm-up before the first cycle.
        start_factor: The first multiplier of the warm-up.

    Example:
        >>> schedule = CosineRestarts(cycle_steps=2, cycle_mul=2, cycle_decay=0.5)
        >>> [round(schedule(step), 3) for step in range(8)]
        [1.0, 0.5, 0.5, 0.427, 0.25, 0.073, 0.25, 0.24]
    """

    cycle_steps: float | None = None
    cycle_mul: float = 1.0
    cycle_decay: float = 1.0
    cycle_limit: int | None = None
    end_factor: float = 0.0
    warmup_steps: int = 0
    start_factor: float = 0.0

    def __post_init__(self) -> None:
        self._check_length("cycle_limit")
        self._check_number("cycle_mul", low=1.0)
        self._check_number("cycle_decay", "end_factor", high=1.0)
        self._check_warmup()
        if self.cycle_steps is not None:
            self._check_number("cycle_steps")
            if self.cycle_steps == 0:
                raise ValueError("cycle_steps: got 0; give a positive number of steps")

    @property
    def total_steps(self) -> int | None:
        """The step after which the last value is kept; None where there is no last cycle."""
        if self.cycle_limit is None or self.cycle_steps is None:
            return None
        return self.warmup_steps + math.ceil(self._begin(self.cycle_limit))

    def __call__(self, step: int) -> float:
        """The multiplier."""
        if step < self.warmup_steps:
            return rise(self.start_factor, step, self.warmup_steps)
        step -= self.warmup_steps
        cycle = self._cycle(step, self._filled("cycle_steps"))
        if self.cycle_limit is not None and cycle >= self.cycle_limit:
            return self.end_factor
        begin, end = self._begin(cycle), self._begin(cycle + 1)
        return cosine(self.cycle_decay**cycle, self.end_factor, min((step - begin) / (end - begin), 1.0))

    def _cycle(self, step: int, cycle_steps: float) -> int:
        """The cycle that a step is in, from 0."""
        if self.cycle_mul == 1:
            cycle = int(step / cycle_steps)
        else:
            cycle = int(math.log(1 + step * (self.cycle_mul - 1) / cycle_steps, self.cycle_mul))
        if self._begin(cycle + 1) <= step:  # the quotient or the logarithm was rounded down
            return cycle + 1
        return cycle - (self._begin(cycle) > step)

    def _begin(self, cycle: int) -> float:
        """The step that a cycle begins with."""
        mul, cycle_steps = self.cycle_mul, self._filled("cycle_steps")
        # Rounded, so that a cycle that begins with a whole step begins with it, and not one later.
        return round(float(cycle_steps * (cycle if mul == 1 else (mul**cycle - 1) / (mul - 1))), 9)

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        cycles = range(3 if self.cycle_limit is None else self.cycle_limit)
        steps = max(total_steps - self.warmup_steps, 1)
        return {"cycle_steps": steps / sum(self.cycle_mul**cycle for cycle in cycles)}


@dataclasses.dataclass(frozen=True)
class FlatCosine(Schedule):
    """Constant, then half a cosine down: `fit_flat_cos` of fastai.

    Args:
        total_steps: Steps of both parts together; the run's when left out.
        pct_start: The part of the steps in which the rate is constant. The default is fastai's.
        end_factor: The last multiplier; the default is fastai's.

    Example:
        >>> [round(FlatCosine(total_steps=8, pct_start=0.5)(step), 3) for step in range(9)]
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """

    total_steps: int | None = None
    pct_start: float = 0.75
    end_factor: float = 1e-5

    def __post_init__(self) -> None:
        self._check_length("total_steps")
        self._check_number("pct_start", "end_factor", high=1.0)

    def __call__(self, step: int) -> float:
        """The multiplier."""
        part = min(step / self._filled("total_steps"), 1.0)
        if part < self.pct_start or self.pct_start == 1:
            return 1.0
        return cosine(1.0, self.end_factor, (part - self.pct_start) / (1 - self.pct_start))
