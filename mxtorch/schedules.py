"""Learning-rate schedules: pure functions of the step that give a multiplier of the base rate.

The base rate is the highest one of a schedule. A schedule is a frozen dataclass: it can be printed, compared,
pickled, plotted, and resumed from one integer. Lengths are in optimizer steps; those left out (None) are filled in
from the run by `Trainer.fit`, or by hand with `for_steps`. A schedule that has an end keeps its last value after it;
the cyclic ones go on.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeGuard, TypeVar

from mxtorch._checks import closest, number, whole_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

S = TypeVar("S", bound="Schedule")
ScheduleName = str


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The base of all schedules: call it with a step to get the multiplier for that step."""

    def __call__(self, step: int) -> float:
        """The multiplier of the base rate for the step, counted from 0.

        Raises:
            ValueError: A length was left out and not filled in.
        """
        raise NotImplementedError

    def for_steps(self: S, total_steps: int) -> S:
        """This schedule with the lengths that were left out filled in for a run of `total_steps` steps.

        Raises:
            ValueError: `total_steps` is no positive integer, or too few for the lengths that were given.
        """
        steps = whole_number(total_steps)
        if steps is None or steps < 1:
            raise ValueError(f"total_steps: got {total_steps!r}; give an integer of at least 1")
        lengths = {name: value for name, value in self._lengths(steps).items() if getattr(self, name) is None}
        return dataclasses.replace(self, **lengths) if lengths else self

    def to_dict(self) -> dict[str, Any]:
        """Name and fields, as plain values that `torch.load(weights_only=True)` takes."""
        return {
            "name": type(self).__name__,
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
        }

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
            object.__setattr__(self, field, length)  # NumPy's would not load with weights_only=True

    def _check_number(self, *fields: str, low: float = 0.0, high: float = math.inf) -> None:
        for field in fields:
            value = number(getattr(self, field))
            if value is None or not math.isfinite(value) or not low <= value <= high:
                given = getattr(self, field)
                raise ValueError(f"{field}: got {given!r}; give a finite number from {low:g} to {high:g}")
            object.__setattr__(self, field, value)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """`factor` for the first `total_iters` steps, 1 from then on, as torch's `ConstantLR`; by default always 1."""

    factor: float = 1.0
    total_iters: int = 0

    def __post_init__(self) -> None:
        self._check_number("factor")
        self._check_length("total_iters", at_least=0)

    def __call__(self, step: int) -> float:
        """The multiplier."""
        return self.factor if step < self.total_iters else 1.0


@dataclasses.dataclass(frozen=True)
class Triangular(Schedule):
    """Up and down in straight lines between `low` and 1, over and over (Smith 2015, arXiv 1506.01186, sec. 3).

    Args:
        step_size: Steps of half a cycle; a quarter of the run when left out, which makes two cycles.
        low: The lowest multiplier. A quarter follows the paper's rule for the lower bound, a third or a fourth of
            the upper one (sec. 3.3).
    """

    step_size: int | None = None
    low: float = 0.25

    def __post_init__(self) -> None:
        self._check_length("step_size")
        self._check_number("low", high=1.0)

    def __call__(self, step: int) -> float:
        """The multiplier."""
        step_size: int = self._filled("step_size")
        cycle = math.floor(1 + step / (2 * step_size))
        position = abs(step / step_size - 2 * cycle + 1)
        return self.low + (1 - self.low) * max(0.0, 1 - position) * self._amplitude(step, cycle)

    def _amplitude(self, step: int, cycle: int) -> float:
        return 1.0

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        return {"step_size": max(total_steps // 4, 1)}


@dataclasses.dataclass(frozen=True)
class Triangular2(Triangular):
    """`Triangular` whose amplitude is halved after each cycle (Smith 2015, sec. 3.2)."""

    def _amplitude(self, step: int, cycle: int) -> float:
        return float(0.5 ** (cycle - 1))


@dataclasses.dataclass(frozen=True)
class ExpRange(Triangular):
    """`Triangular` whose amplitude shrinks by `gamma` with every step (Smith 2015, sec. 3.2).

    Args:
        gamma: The factor for each step; 0.99994 is the paper's value for 100,000 and more steps.
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

    The base rate is the peak; Smith 2018, arXiv 1803.09820, tells how to choose it. Names and values are those of
    `torch.optim.lr_scheduler.OneCycleLR`; momentum is left alone.

    Args:
        total_steps: Steps of the whole cycle; the run's when left out.
        pct_start: The part of the steps in which the rate rises.
        anneal_strategy: `"cos"` or `"linear"`.
        div_factor: The first rate is the peak divided by this.
        final_div_factor: The last rate is the first divided by this.
        three_phase: Fall symmetrically to the first rate before going below it.
    """

    total_steps: int | None = None
    pct_start: float = 0.3
    anneal_strategy: Literal["cos", "linear"] = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False
    _phases: ClassVar[tuple[tuple[float, float, float], ...]]

    def __post_init__(self) -> None:
        self._check_length("total_steps")
        self._check_number("pct_start", high=1.0)
        self._check_number("div_factor", "final_div_factor", low=1.0)
        if self.anneal_strategy not in ("cos", "linear"):
            hint = closest(str(self.anneal_strategy), ("cos", "linear"))
            raise ValueError(f"anneal_strategy: got {self.anneal_strategy!r}{hint}")
        object.__setattr__(self, "anneal_strategy", str(self.anneal_strategy))
        object.__setattr__(self, "three_phase", bool(self.three_phase))
        if self.total_steps is not None:
            object.__setattr__(self, "_phases", self._worked_out_phases(self.total_steps))

    def __call__(self, step: int) -> float:
        """The multiplier."""
        step = min(step, self._filled("total_steps") - 1)
        begin = 0.0
        for end, from_value, to_value in self._phases:
            if step <= end and end > begin:
                return self._anneal(from_value, to_value, (step - begin) / (end - begin))
            begin = end
        return to_value

    def _worked_out_phases(self, total_steps: int) -> tuple[tuple[float, float, float], ...]:
        """The last step, first value and last value of each phase; once, as it is asked for in every step."""
        first = 1 / self.div_factor
        last = first / self.final_div_factor
        rise_end = self.pct_start * total_steps - 1
        if not self.three_phase:
            return (rise_end, first, 1.0), (total_steps - 1, 1.0, last)
        return (rise_end, first, 1.0), (2 * rise_end, 1.0, first), (total_steps - 1, first, last)

    def _anneal(self, start: float, end: float, part: float) -> float:
        if self.anneal_strategy == "linear":
            return start + (end - start) * part
        return _cosine(start, end, part)


@dataclasses.dataclass(frozen=True)
class CosineAnnealing(Schedule):
    """Half a cosine from 1 to `end_factor` (Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts).

    Args:
        total_steps: Steps from top to bottom; the run's when left out.
        end_factor: The last multiplier.
    """

    total_steps: int | None = None
    end_factor: float = 0.0

    def __post_init__(self) -> None:
        self._check_length("total_steps")
        self._check_number("end_factor", high=1.0)

    def __call__(self, step: int) -> float:
        """The multiplier."""
        return _cosine(1.0, self.end_factor, min(step / self._filled("total_steps"), 1.0))


@dataclasses.dataclass(frozen=True)
class WarmupCosine(Schedule):
    """A linear warm-up (Goyal et al. 2017, arXiv 1706.02677, sec. 2.2), then `CosineAnnealing`.

    Torch's `SequentialLR` of `LinearLR` and `CosineAnnealingLR`.

    Args:
        total_steps: Steps of both parts together; the run's when left out.
        warmup_steps: Steps of the warm-up; a twentieth of the run, rounded up, when left out.
        start_factor: The first multiplier of the warm-up.
        end_factor: The last multiplier of the cosine.
    """

    total_steps: int | None = None
    warmup_steps: int | None = None
    start_factor: float = 0.01
    end_factor: float = 0.0

    def __post_init__(self) -> None:
        self._check_length("total_steps")
        self._check_length("warmup_steps", at_least=0)
        self._check_number("start_factor", "end_factor", high=1.0)
        if self.total_steps is not None and self.warmup_steps is not None and self.warmup_steps >= self.total_steps:
            raise ValueError(f"warmup_steps: got {self.warmup_steps}; give fewer than total_steps, {self.total_steps}")

    def __call__(self, step: int) -> float:
        """The multiplier."""
        total_steps, warmup_steps = self._filled("total_steps"), self._filled("warmup_steps")
        if step < warmup_steps:
            return float(self.start_factor + (1 - self.start_factor) * step / warmup_steps)
        return _cosine(1.0, self.end_factor, min((step - warmup_steps) / (total_steps - warmup_steps), 1.0))

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        total_steps = self.total_steps or total_steps
        return {"total_steps": total_steps, "warmup_steps": min(math.ceil(total_steps / 20), total_steps - 1)}


@dataclasses.dataclass(frozen=True)
class Step(Schedule):
    """Multiply by `gamma` every `step_size` steps.

    Args:
        step_size: Optimizer steps between two drops; a third of the run, rounded up, when left out.
        gamma: The factor of each drop.
    """

    step_size: int | None = None
    gamma: float = 0.1

    def __post_init__(self) -> None:
        self._check_length("step_size")
        self._check_number("gamma")

    def __call__(self, step: int) -> float:
        """The multiplier."""
        return _power(self.gamma, step // self._filled("step_size"))

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        return {"step_size": math.ceil(total_steps / 3)}


@dataclasses.dataclass(frozen=True)
class MultiStep(Schedule):
    """Multiply by `gamma` at each milestone.

    Args:
        milestones: Optimizer steps, rising; a half and three quarters of the run, rounded up, when left out, as He
            et al. (2015, arXiv 1512.03385, sec. 4.2) train on CIFAR-10.
        gamma: The factor of each drop.
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
        return _power(self.gamma, bisect.bisect_right(self._filled("milestones"), step))

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        return {"milestones": (math.ceil(total_steps / 2), math.ceil(total_steps * 3 / 4))}


@dataclasses.dataclass(frozen=True)
class Exponential(Schedule):
    """Multiply by `gamma` after every step.

    Args:
        gamma: The factor of each step; when left out, the one that ends a run at a hundredth.
    """

    gamma: float | None = None

    def __post_init__(self) -> None:
        if self.gamma is not None:
            self._check_number("gamma")

    def __call__(self, step: int) -> float:
        """The multiplier."""
        return _power(self._filled("gamma"), step)

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        return {"gamma": 0.01 ** (1 / total_steps)}


@dataclasses.dataclass(frozen=True)
class Polynomial(Schedule):
    """From 1 to 0 as a power of what is left of the run.

    Args:
        total_steps: Steps until 0; the run's when left out.
        power: 1 is a straight line.
    """

    total_steps: int | None = None
    power: float = 1.0

    def __post_init__(self) -> None:
        self._check_length("total_steps")
        self._check_number("power")

    def __call__(self, step: int) -> float:
        """The multiplier."""
        return float(max(1 - step / self._filled("total_steps"), 0.0) ** self.power)


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def _power(gamma: float, exponent: int) -> float:
    try:
        return float(gamma**exponent)
    except OverflowError:  # ScheduledOptim refuses it, and names the step
        return math.inf


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


_CLASSES: tuple[type[Schedule], ...] = (
    Constant,
    Triangular,
    Triangular2,
    ExpRange,
    OneCycle,
    CosineAnnealing,
    WarmupCosine,
    Step,
    MultiStep,
    Exponential,
    Polynomial,
)
_BY_NAME = {_snake_case(kind.__name__): kind for kind in _CLASSES}


def get(schedule: str | Schedule) -> Schedule:
    """A schedule from its name (`"one_cycle"`, `"OneCycle"`), with all lengths left out; a schedule as it is.

    Raises:
        ValueError: The name is unknown.
        TypeError: Something else was given.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if not isinstance(schedule, str):
        raise TypeError(f"schedule: got {schedule!r}; give a name or one of mxtorch.schedules")
    kind = _BY_NAME.get(_snake_case(schedule))
    if kind is None:
        raise ValueError(f"schedule: got {schedule!r}{closest(_snake_case(schedule), _BY_NAME)}")
    return kind()


def from_dict(content: dict[str, Any]) -> Schedule:
    """What `Schedule.to_dict` wrote.

    Raises:
        ValueError: The name or a field is unknown, or a value is off.
    """
    fields = dict(content)
    schedule = get(str(fields.pop("name", "")))
    known = [field.name for field in dataclasses.fields(schedule)]
    for name in fields:
        if name not in known:
            raise ValueError(f"{type(schedule).__name__}: got a field {name!r}{closest(str(name), known)}")
        items = fields[name] if isinstance(fields[name], (list, tuple)) else [fields[name]]
        if not all(isinstance(item, (type(None), bool, int, float, str)) for item in items):
            raise ValueError(f"{type(schedule).__name__}: {name} is {fields[name]!r}; it must be a number or a name")
    return dataclasses.replace(schedule, **fields)


def is_savable(schedule: object) -> TypeGuard[Schedule]:
    """True where `from_dict` can make it again: a schedule of this module, not of a subclass elsewhere."""
    return type(schedule) in _CLASSES


def plot(schedule: Schedule | Callable[[int], float], total_steps: int, axes: Axes | None = None) -> Axes:
    """Draw a schedule over a run.

    Args:
        schedule: The schedule; lengths left out are filled in.
        total_steps: Optimizer steps of the run.
        axes: Where to draw; a new figure when left out.
    """
    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(figsize=(6, 3))
    if isinstance(schedule, Schedule):
        schedule = schedule.for_steps(total_steps)
    axes.plot(range(total_steps), [schedule(step) for step in range(total_steps)], color="#e07a1f")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("multiple of the base rate")
    return axes
