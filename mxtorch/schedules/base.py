"""What all schedules have in common."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from mxtorch._checks import closest, number, whole_number
from mxtorch.schedules.plotting import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

S = TypeVar("S", bound="Schedule")
# Any function from the step, counted from 0, to the multiplier of the base rate. A `Schedule` is one.
ScheduleFunction: TypeAlias = Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The base of all schedules: call it with a step to get the multiplier for that step.

    `fit` and `ScheduledOptim` take any other function of the step too, but can't fill in its length or save it.
    """

    def __call__(self, step: int) -> float:
        """The multiplier of the base rate for a step.

        Args:
            step: Optimizer steps that were taken before this one.

        Raises:
            ValueError: A length was left out and not filled in.
        """
        raise NotImplementedError

    def momentum(self, step: int) -> float | None:
        """The momentum (beta1 of Adam and its kin) for a step; None leaves it as it is.

        `ScheduledOptim` gives it to the first parameter group that has a momentum; the others keep their ratios to it.

        Args:
            step: As for a call.
        """
        return None

    def for_steps(self: S, total_steps: int) -> S:
        """This schedule for a run of `total_steps` steps: the lengths that were left out are filled in.

        Args:
            total_steps: Optimizer steps of the run; an integer of Python, NumPy or torch.

        Raises:
            ValueError: `total_steps` is not a positive integer, or too small for the lengths that were given.

        Example:
            >>> from mxtorch.schedules import Step
            >>> Step(gamma=0.5).for_steps(90)
            Step(step_size=30, gamma=0.5)
        """
        steps = whole_number(total_steps)
        if steps is None or steps < 1:
            raise ValueError(f"total_steps: got {total_steps!r}; give an integer of at least 1")
        return self._filled_in(steps)

    def plot(self, total_steps: int, axes: Axes | None = None) -> Axes:
        """Draw this schedule over a run of `total_steps` steps; see `mxtorch.schedules.plot`.

        Example:
            >>> from mxtorch.schedules import WarmupCosine
            >>> WarmupCosine().plot(total_steps=100).get_title(loc="left")
            'WarmupCosine'
        """
        return plot(self, total_steps, axes)

    def to_dict(self) -> dict[str, Any]:
        """Name and fields as plain values, which `torch.load(weights_only=True)` reads and `from_dict` takes.

        Example:
            >>> from mxtorch.schedules import Step
            >>> Step(30).to_dict()
            {'name': 'Step', 'step_size': 30, 'gamma': 0.1}
        """
        return {
            "name": type(self).__name__,
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
        }

    def _filled_in(self: S, total_steps: int) -> S:
        lengths = {name: value for name, value in self._lengths(total_steps).items() if getattr(self, name) is None}
        return dataclasses.replace(self, **lengths) if lengths else self

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        return {"total_steps": total_steps} if hasattr(self, "total_steps") else {}

    def _filled(self, field: str) -> Any:
        value = getattr(self, field)
        if value is None:
            raise ValueError(
                f"{type(self).__name__} does not know its {field}; give {field}=, or fill it in with .for_steps(...)"
            )
        return value

    def _check_length(self, *fields: str, at_least: int = 1) -> None:
        for field in fields:
            value = getattr(self, field)
            if value is None:
                continue
            length = whole_number(value)
            if length is None or length < at_least:
                raise ValueError(f"{field}: got {value!r}; give an integer of at least {at_least}")
            object.__setattr__(self, field, length)  # an integer of NumPy would not load with weights_only=True

    def _check_number(self, *fields: str, low: float = 0.0, high: float = math.inf) -> None:
        for field in fields:
            value = number(getattr(self, field))
            if value is None or not math.isfinite(value) or not low <= value <= high:
                given = getattr(self, field)
                raise ValueError(f"{field}: got {given!r}; give a finite number from {low:g} to {high:g}")
            object.__setattr__(self, field, value)

    def _check_choice(self, field: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, field)
        if value not in choices:
            raise ValueError(f"{field}: got {value!r}{closest(str(value), choices)}")
        object.__setattr__(self, field, str(value))

    def _check_warmup(self) -> None:
        """Check the lengths and the first multiplier of a warm-up that ends before `total_steps`, if it has these."""
        self._check_length("warmup_steps", at_least=0)
        self._check_number("start_factor", high=1.0)
        total, warmup = getattr(self, "total_steps", None), self.warmup_steps  # type: ignore[attr-defined]
        if total is not None and warmup is not None and warmup >= total:
            raise ValueError(f"warmup_steps: got {warmup}; give fewer than total_steps, {total}")

    def _check_momentum(self) -> None:
        """Check the range of a momentum that is cycled."""
        object.__setattr__(self, "cycle_momentum", bool(self.cycle_momentum))  # type: ignore[attr-defined]
        self._check_number("base_momentum", "max_momentum", high=1.0)
        base, highest = self.base_momentum, self.max_momentum  # type: ignore[attr-defined]
        if not base <= highest < 1:
            raise ValueError(f"max_momentum: got {highest}; give a number from base_momentum, {base}, to below 1")


def momentum_of(schedule: ScheduleFunction, step: int) -> float | None:
    """The momentum that a schedule gives for a step; None of one that gives none, and of a plain function.

    Example:
        >>> from mxtorch import schedules
        >>> momentum_of(schedules.OneCycle(total_steps=10), 2)
        0.85
    """
    return schedule.momentum(step) if isinstance(schedule, Schedule) else None


def cycles_momentum(schedule: object) -> bool:
    """Whether a schedule gives a momentum for at least some of its steps."""
    if not isinstance(schedule, Schedule) or type(schedule).momentum is Schedule.momentum:
        return False
    return bool(getattr(schedule, "cycle_momentum", True))


def usual_warmup(total_steps: int) -> int:
    """The steps of a warm-up whose length was left out: a twentieth of the run, rounded up, and never all of it."""
    return min(math.ceil(total_steps / 20), total_steps - 1)


def rise(start: float, step: int, steps: int) -> float:
    """The multiplier of a linear warm-up from `start` to 1, at one of its steps."""
    return start + (1 - start) * step / steps


def cosine(start: float, end: float, part: float) -> float:
    """Half a cosine from `start` to `end`, at a part of the way from 0 to 1."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def power(gamma: float, exponent: int) -> float:
    """A power of a factor, which may be infinite."""
    try:
        return float(gamma**exponent)
    except OverflowError:  # ScheduledOptim raises for an infinite multiplier and names the step
        return math.inf
