"""Schedules made of schedules: one after the other, or multiplied."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from mxtorch._checks import whole_number
from mxtorch.schedules.base import Schedule, cycles_momentum


@dataclasses.dataclass(frozen=True)
class _Combination(Schedule):
    schedules: Sequence[Schedule]

    def __post_init__(self) -> None:
        given = self.schedules if isinstance(self.schedules, Iterable) else [None]
        parts = tuple(given)
        if len(parts) < 2 or not all(isinstance(part, Schedule) for part in parts):
            raise ValueError(
                f"schedules: got {self.schedules!r}; give at least two schedules of mxtorch.schedules, in a list"
            )
        object.__setattr__(self, "schedules", parts)

    @property
    def cycle_momentum(self) -> bool:
        """Whether a part cycles momentum."""
        return any(cycles_momentum(part) for part in self.schedules)

    @property
    def max_momentum(self) -> float | None:
        """The highest momentum of the parts; None where it is not known."""
        known = [getattr(part, "max_momentum", None) for part in self.schedules if cycles_momentum(part)]
        return max((highest for highest in known if highest is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """As `Schedule.to_dict`; the parts are described in the same way."""
        return {**super().to_dict(), "schedules": [part.to_dict() for part in self.schedules]}


@dataclasses.dataclass(frozen=True)
class Sequential(_Combination):
    """One schedule after the other, each from its own beginning, as torch's `SequentialLR`.

    Args:
        schedules: At least two. Their lengths that are left out are filled in with the steps that each has.
        milestones: The steps at which the second, the third, ... begin, rising; parts of equal length when left out.

    Raises:
        ValueError: The milestones are not one fewer than the schedules, or do not rise.

    Example:
        >>> from mxtorch.schedules import Constant, CosineAnnealing
        >>> schedule = Sequential([Constant(), CosineAnnealing()], milestones=[2]).for_steps(6)
        >>> [round(schedule(step), 3) for step in range(7)]
        [1.0, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """

    milestones: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.milestones is None:
            return
        given = self.milestones if isinstance(self.milestones, Iterable) else [None]
        steps = [whole_number(step) for step in given]
        whole = [step for step in steps if step is not None and step >= 1]
        if len(whole) < len(steps) or len(set(whole)) < len(whole) or sorted(whole) != whole:
            raise ValueError(f"milestones: got {self.milestones!r}; give optimizer steps, as rising integers")
        if len(whole) != len(self.schedules) - 1:
            raise ValueError(
                f"milestones: got {len(whole)} for {len(self.schedules)} schedules; give one fewer than schedules"
            )
        object.__setattr__(self, "milestones", tuple(whole))

    @property
    def total_steps(self) -> int | None:
        """The end of the last part; None where it has none, or is not known."""
        last = getattr(self.schedules[-1], "total_steps", None)
        return None if last is None or self.milestones is None else self.milestones[-1] + last

    def __call__(self, step: int) -> float:
        """The multiplier."""
        part, begin = self._at(step)
        return part(step - begin)

    def momentum(self, step: int) -> float | None:
        """The momentum of the part that the step is in."""
        part, begin = self._at(step)
        return part.momentum(step - begin)

    def _at(self, step: int) -> tuple[Schedule, int]:
        begins = (0, *self._filled("milestones"))
        index = max(index for index, begin in enumerate(begins) if begin <= step)
        return self.schedules[index], begins[index]

    def _filled_in(self, total_steps: int) -> Sequential:
        count = len(self.schedules)
        milestones = self.milestones
        if milestones is None:
            milestones = [max(round(total_steps * part / count), part) for part in range(1, count)]
        ends = [*milestones[1:], max(total_steps, milestones[-1] + 1)]
        lengths = [milestones[0], *(end - begin for begin, end in zip(milestones, ends, strict=True))]
        parts = [part.for_steps(length) for part, length in zip(self.schedules, lengths, strict=True)]
        return Sequential(parts, milestones)


@dataclasses.dataclass(frozen=True)
class Chained(_Combination):
    """The product of schedules that all begin with the run, as torch's `ChainedScheduler` of schedulers that multiply.

    Momentum is that of the first schedule that gives one.

    Args:
        schedules: At least two. Their lengths that are left out are filled in with the steps of the run.

    Example:
        >>> from mxtorch.schedules import Polynomial, WarmupConstant
        >>> schedule = Chained([WarmupConstant(warmup_steps=2), Polynomial()]).for_steps(4)
        >>> [schedule(step) for step in range(5)]
        [0.0, 0.375, 0.5, 0.25, 0.0]
    """

    @property
    def total_steps(self) -> int | None:
        """The latest end of a part; None where one has none, or is not known."""
        ends = [getattr(part, "total_steps", None) for part in self.schedules]
        known = [end for end in ends if end is not None]
        return max(known) if len(known) == len(ends) else None

    def __call__(self, step: int) -> float:
        """The multiplier."""
        product = 1.0
        for part in self.schedules:
            product *= part(step)
        return product

    def momentum(self, step: int) -> float | None:
        """The momentum of the first part that gives one."""
        given = (part.momentum(step) for part in self.schedules)
        return next((momentum for momentum in given if momentum is not None), None)

    def _filled_in(self, total_steps: int) -> Chained:
        return Chained([part.for_steps(total_steps) for part in self.schedules])
