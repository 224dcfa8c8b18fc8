"""Rates that fall by factors."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from mxtorch._checks import whole_number
from mxtorch.schedules.base import Schedule, power


@dataclasses.dataclass(frozen=True)
class Step(Schedule):
    """Multiply by `gamma` every `step_size` steps.

    Args:
        step_size: Optimizer steps between two drops; a third of the run, rounded up, when left out.
        gamma: The factor of each drop.

    Example:
        >>> [Step(step_size=2, gamma=0.5)(step) for step in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    step_size: int | None = None
    gamma: float = 0.1

    def __post_init__(self) -> None:
        self._check_length("step_size")
        self._check_number("gamma")

    def __call__(self, step: int) -> float:
        """The multiplier."""
        return power(self.gamma, step // self._filled("step_size"))

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        return {"step_size": math.ceil(total_steps / 3)}


@dataclasses.dataclass(frozen=True)
class MultiStep(Schedule):
    """Multiply by `gamma` at each milestone.

    Args:
        milestones: Optimizer steps, in any order. When left out, a half and three quarters of the run, rounded up, as
            in He et al. (2015, arXiv 1512.03385, sec. 4.2) on CIFAR-10.
        gamma: The factor of each drop.

    Example:
        >>> [MultiStep(milestones=(1, 3), gamma=0.5)(step) for step in range(5)]
        [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    milestones: Sequence[int] | None = None
    gamma: float = 0.1

    def __post_init__(self) -> None:
        self._check_number("gamma")
        if self.milestones is not None:
            given = self.milestones if isinstance(self.milestones, Iterable) else [None]
            milestones = [whole_number(milestone) for milestone in given]
            steps = sorted(milestone for milestone in milestones if milestone is not None and milestone >= 0)
            if len(steps) < len(milestones):
                raise ValueError(f"milestones: got {self.milestones!r}; give optimizer steps, as integers")
            object.__setattr__(self, "milestones", tuple(steps))

    def __call__(self, step: int) -> float:
        """The multiplier."""
        return power(self.gamma, bisect.bisect_right(self._filled("milestones"), step))

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        return {"milestones": (math.ceil(total_steps / 2), math.ceil(total_steps * 3 / 4))}


@dataclasses.dataclass(frozen=True)
class Exponential(Schedule):
    """Multiply by `gamma` after every step.

    Args:
        gamma: The factor of each step. When left out, the factor that makes the run end at a hundredth.

    Example:
        >>> [Exponential(gamma=0.5)(step) for step in range(4)]
        [1.0, 0.5, 0.25, 0.125]
    """

    gamma: float | None = None

    def __post_init__(self) -> None:
        if self.gamma is not None:
            self._check_number("gamma")

    def __call__(self, step: int) -> float:
        """The multiplier."""
        return power(self._filled("gamma"), step)

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        return {"gamma": 0.01 ** (1 / total_steps)}
