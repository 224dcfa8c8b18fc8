"""Rates that rise and fall: once, or over and over."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

from mxtorch.schedules.base import Schedule, cosine


@dataclasses.dataclass(frozen=True)
class Triangular(Schedule):
    """Up and down in straight lines between `low` and 1, over and over (Smith 2015, arXiv 1506.01186, sec. 3).

    Momentum falls while the rate rises, and rises while it falls (Smith 2018, arXiv 1803.09820, sec. 4.3). Values and
    defaults are those of `torch.optim.lr_scheduler.CyclicLR`.

    Args:
        step_size: Steps of half a cycle; a quarter of the run when left out, which makes two cycles.
        low: The lowest multiplier. The default of a quarter follows the paper's rule for the lower bound: a third or
            a fourth of the upper bound (sec. 3.3).
        cycle_momentum: Whether momentum is cycled against the rate.
        base_momentum: The momentum at the highest rate.
        max_momentum: The momentum at the lowest rate.

    Example:
        >>> [Triangular(step_size=2, low=0.5)(step) for step in range(6)]
        [0.5, 0.75, 1.0, 0.75, 0.5, 0.75]
    """

    step_size: int | None = None
    low: float = 0.25
    cycle_momentum: bool = dataclasses.field(default=True, kw_only=True)
    base_momentum: float = dataclasses.field(default=0.8, kw_only=True)
    max_momentum: float = dataclasses.field(default=0.9, kw_only=True)

    def __post_init__(self) -> None:
        self._check_length("step_size")
        self._check_number("low", high=1.0)
        self._check_momentum()

    def __call__(self, step: int) -> float:
        """The multiplier."""
        return self.low + (1 - self.low) * self._height(step)

    def momentum(self, step: int) -> float | None:
        """The momentum; None where it is not cycled."""
        if not self.cycle_momentum:
            return None
        return self.max_momentum - (self.max_momentum - self.base_momentum) * self._height(step)

    def _height(self, step: int) -> float:
        """How far up the rate is, from 0 to 1."""
        step_size: int = self._filled("step_size")
        cycle = math.floor(1 + step / (2 * step_size))
        position = abs(step / step_size - 2 * cycle + 1)
        return max(0.0, 1 - position) * self._amplitude(step, cycle)

    def _amplitude(self, step: int, cycle: int) -> float:
        return 1.0

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        return {"step_size": max(total_steps // 4, 1)}


@dataclasses.dataclass(frozen=True)
class Triangular2(Triangular):
    """`Triangular` whose amplitude is halved after each cycle (Smith 2015, sec. 3.2).

    Example:
        >>> [Triangular2(step_size=1, low=0.0)(step) for step in range(6)]
        [0.0, 1.0, 0.0, 0.5, 0.0, 0.25]
    """

    def _amplitude(self, step: int, cycle: int) -> float:
        return float(0.5 ** (cycle - 1))


@dataclasses.dataclass(frozen=True)
class ExpRange(Triangular):
    """`Triangular` whose amplitude shrinks by `gamma` with every step (Smith 2015, sec. 3.2).

    Args:
        gamma: The factor of each step. The default is the paper's value, for 100,000 steps and more.

    Example:
        >>> [round(ExpRange(step_size=1, low=0.0, gamma=0.9)(step), 3) for step in range(4)]
        [0.0, 0.9, 0.0, 0.729]
    """

    gamma: float = 0.99994

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("gamma", high=1.0)

    def _amplitude(self, step: int, cycle: int) -> float:
        return float(self.gamma**step)


@dataclasses.dataclass(frozen=True)
class OneCycle(Schedule):
    """Up to the peak, then down far below the start (Smith and Topin 2017, arXiv 1708.07120).

    The base rate is the peak; Smith 2018, arXiv 1803.09820, describes how to choose it. Momentum falls while the rate
    rises, and rises while it falls (sec. 4.3 there). Names, defaults and values are those of
    `torch.optim.lr_scheduler.OneCycleLR`.

    Args:
        total_steps: Steps of the whole cycle; the run's when left out.
        pct_start: The part of the steps in which the rate rises.
        anneal_strategy: `"cos"` or `"linear"`.
        div_factor: The first rate is the peak divided by this.
        final_div_factor: The last rate is the first divided by this.
        three_phase: Fall to the first rate as steeply as the rate rose, then go below it.
        cycle_momentum: Whether momentum is cycled against the rate.
        base_momentum: The momentum at the peak.
        max_momentum: The momentum at the start and the end.

    Example:
        >>> [round(OneCycle(total_steps=10)(step), 3) for step in range(10)]
        [0.04, 0.52, 1.0, 0.95, 0.812, 0.611, 0.389, 0.188, 0.05, 0.0]
    """

    total_steps: int | None = None
    pct_start: float = 0.3
    anneal_strategy: Literal["cos", "linear"] = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False
    cycle_momentum: bool = True
    base_momentum: float = 0.85
    max_momentum: float = 0.95
    _phases: ClassVar[tuple[tuple[float, float, float], ...]]
    _momentum_phases: ClassVar[tuple[tuple[float, float, float], ...]]

    def __post_init__(self) -> None:
        self._check_length("total_steps")
        self._check_number("pct_start", high=1.0)
        self._check_number("div_factor", "final_div_factor", low=1.0)
        self._check_choice("anneal_strategy", ("cos", "linear"))
        object.__setattr__(self, "three_phase", bool(self.three_phase))
        self._check_momentum()
        if self.total_steps is not None:  # computed once, since every step needs it
            first = 1 / self.div_factor
            phases = self._worked_out_phases(self.total_steps, first, 1.0, first / self.final_div_factor)
            object.__setattr__(self, "_phases", phases)
            highest = self.max_momentum
            phases = self._worked_out_phases(self.total_steps, highest, self.base_momentum, highest)
            object.__setattr__(self, "_momentum_phases", phases)

    def __call__(self, step: int) -> float:
        """The multiplier."""
        step = min(step, self._filled("total_steps") - 1)
        return self._value(step, self._phases)

    def momentum(self, step: int) -> float | None:
        """The momentum; None where it is not cycled."""
        if not self.cycle_momentum:
            return None
        step = min(step, self._filled("total_steps") - 1)
        return self._value(step, self._momentum_phases)

    def _value(self, step: int, phases: tuple[tuple[float, float, float], ...]) -> float:
        begin = 0.0
        for end, from_value, to_value in phases:
            if step <= end and end > begin:
                return self._anneal(from_value, to_value, (step - begin) / (end - begin))
            begin = end
        return to_value

    def _worked_out_phases(
        self, total_steps: int, first: float, peak: float, last: float
    ) -> tuple[tuple[float, float, float], ...]:
        """The last step, first value and last value of each phase."""
        rise_end = self.pct_start * total_steps - 1
        if not self.three_phase:
            return (rise_end, first, peak), (total_steps - 1, peak, last)
        return (rise_end, first, peak), (2 * rise_end, peak, first), (total_steps - 1, first, last)

    def _anneal(self, start: float, end: float, part: float) -> float:
        if self.anneal_strategy == "linear":
            return start + (end - start) * part
        return cosine(start, end, part)
