"""Learning-rate schedules: functions of the step that give a multiplier of the base rate.

The base rate is the highest rate of a schedule. A schedule is a frozen dataclass: it can be printed, compared, pickled,
plotted, and resumed from one integer. Lengths are in optimizer steps. Those that are left out (None) are filled in from
the run by `Trainer.fit`, or by `for_steps`. A schedule that has an end keeps its last value afterwards; the cyclic
schedules go on.

    >>> from mxtorch import schedules
    >>> schedule = schedules.OneCycle().for_steps(100)
    >>> [round(schedule(step), 3) for step in (0, 29, 99)]
    [0.04, 1.0, 0.0]
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeGuard, TypeVar

from mxtorch._checks import closest, number, whole_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

S = TypeVar("S", bound="Schedule")

# What `get` and `Trainer.fit` take, besides a `Schedule`; the classes in CamelCase have the same names.
ScheduleName: TypeAlias = Literal[
    "constant",
    "triangular",
    "triangular2",
    "exp_range",
    "one_cycle",
    "cosine_annealing",
    "warmup_cosine",
    "step",
    "multi_step",
    "exponential",
    "polynomial",
]
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

    def for_steps(self: S, total_steps: int) -> S:
        """This schedule for a run of `total_steps` steps: the lengths that were left out are filled in.

        Args:
            total_steps: Optimizer steps of the run; an integer of Python, NumPy or torch.

        Raises:
            ValueError: `total_steps` is not a positive integer, or too small for the lengths that were given.

        Example:
            >>> Step(gamma=0.5).for_steps(90)
            Step(step_size=30, gamma=0.5)
        """
        steps = whole_number(total_steps)
        if steps is None or steps < 1:
            raise ValueError(f"total_steps: got {total_steps!r}; give an integer of at least 1")
        lengths = {name: value for name, value in self._lengths(steps).items() if getattr(self, name) is None}
        return dataclasses.replace(self, **lengths) if lengths else self

    def to_dict(self) -> dict[str, Any]:
        """Name and fields as plain values, which `torch.load(weights_only=True)` reads and `from_dict` takes.

        Example:
            >>> Step(30).to_dict()
            {'name': 'Step', 'step_size': 30, 'gamma': 0.1}
        """
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
            object.__setattr__(self, field, length)  # an integer of NumPy would not load with weights_only=True

    def _check_number(self, *fields: str, low: float = 0.0, high: float = math.inf) -> None:
        for field in fields:
            value = number(getattr(self, field))
            if value is None or not math.isfinite(value) or not low <= value <= high:
                given = getattr(self, field)
                raise ValueError(f"{field}: got {given!r}; give a finite number from {low:g} to {high:g}")
            object.__setattr__(self, field, value)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """`factor` for the first `total_iters` steps, then 1, as torch's `ConstantLR`; by default always 1.

    Args:
        factor: The multiplier of the first steps.
        total_iters: How many these are.

    Example:
        >>> [Constant(0.1, total_iters=2)(step) for step in range(4)]
        [0.1, 0.1, 1.0, 1.0]
    """

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
        low: The lowest multiplier. The default of a quarter follows the paper's rule for the lower bound: a third or
            a fourth of the upper bound (sec. 3.3).

    Example:
        >>> [Triangular(step_size=2, low=0.5)(step) for step in range(6)]
        [0.5, 0.75, 1.0, 0.75, 0.5, 0.75]
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

    The base rate is the peak; Smith 2018, arXiv 1803.09820, describes how to choose it. Names, defaults and values are
    those of `torch.optim.lr_scheduler.OneCycleLR`, except that momentum is not changed.

    Args:
        total_steps: Steps of the whole cycle; the run's when left out.
        pct_start: The part of the steps in which the rate rises.
        anneal_strategy: `"cos"` or `"linear"`.
        div_factor: The first rate is the peak divided by this.
        final_div_factor: The last rate is the first divided by this.
        three_phase: Fall to the first rate as steeply as the rate rose, then go below it.

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
        """The last step, first value and last value of each phase. Computed once, since every step needs it."""
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
        return _cosine(1.0, self.end_factor, min(step / self._filled("total_steps"), 1.0))


@dataclasses.dataclass(frozen=True)
class WarmupCosine(Schedule):
    """A linear warm-up (Goyal et al. 2017, arXiv 1706.02677, sec. 2.2), then `CosineAnnealing`.

    The values are those of torch's `SequentialLR` of `LinearLR` and `CosineAnnealingLR`.

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
        return _power(self.gamma, step // self._filled("step_size"))

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
        return _power(self.gamma, bisect.bisect_right(self._filled("milestones"), step))

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
        return _power(self._filled("gamma"), step)

    def _lengths(self, total_steps: int) -> dict[str, Any]:
        return {"gamma": 0.01 ** (1 / total_steps)}


@dataclasses.dataclass(frozen=True)
class Polynomial(Schedule):
    """From 1 to 0 as a power of the part of the run that is left.

    Args:
        total_steps: Steps until 0; the run's when left out.
        power: The exponent; 1 gives a straight line.

    Example:
        >>> [Polynomial(total_steps=4)(step) for step in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
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
    except OverflowError:  # ScheduledOptim raises for an infinite multiplier and names the step
        return math.inf


_BY_NAME: dict[str, type[Schedule]] = {
    "constant": Constant,
    "triangular": Triangular,
    "triangular2": Triangular2,
    "exp_range": ExpRange,
    "one_cycle": OneCycle,
    "cosine_annealing": CosineAnnealing,
    "warmup_cosine": WarmupCosine,
    "step": Step,
    "multi_step": MultiStep,
    "exponential": Exponential,
    "polynomial": Polynomial,
}


def get(schedule: ScheduleName | str | Schedule) -> Schedule:
    """A schedule from its name, with all lengths left out; a schedule as it is.

    Args:
        schedule: A name as in `ScheduleName`, the name of a class, or a schedule.

    Raises:
        ValueError: The name is unknown.
        TypeError: `schedule` is neither a name nor a schedule of this module.

    Example:
        >>> get("warmup_cosine")
        WarmupCosine(total_steps=None, warmup_steps=None, start_factor=0.01, end_factor=0.0)
        >>> get("OneCycle") == get("one_cycle") == OneCycle()
        True
    """
    if isinstance(schedule, Schedule):
        return schedule
    if not isinstance(schedule, str):
        raise TypeError(f"schedule: got {schedule!r}; give a name or one of mxtorch.schedules")
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", schedule).lower()
    if name not in _BY_NAME:
        raise ValueError(f"schedule: got {schedule!r}{closest(name, _BY_NAME)}")
    return _BY_NAME[name]()


def name_of(schedule: object) -> str | None:
    """The name that `get` knows a schedule by; None for one of the user's own, or a function.

    Example:
        >>> name_of(OneCycle())
        'one_cycle'
    """
    return next((name for name, kind in _BY_NAME.items() if type(schedule) is kind), None)


def from_dict(content: dict[str, Any]) -> Schedule:
    """The schedule that `Schedule.to_dict` described.

    Raises:
        ValueError: The name or a field is unknown, or a value is out of range.

    Example:
        >>> from_dict({"name": "Step", "step_size": 30, "gamma": 0.1})
        Step(step_size=30, gamma=0.1)
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
    """Whether `from_dict` can restore it. It can for the classes of this module, not for subclasses elsewhere."""
    return type(schedule) in _BY_NAME.values()


def plot(schedule: ScheduleFunction, total_steps: int, axes: Axes | None = None) -> Axes:
    """Draw a schedule over a run.

    Args:
        schedule: A schedule, whose lengths are filled in where they were left out; or any function of the step.
        total_steps: Optimizer steps of the run.
        axes: Where to draw; a new figure when left out.

    Returns:
        The axes.

    Example:
        >>> plot(OneCycle(), total_steps=1000).get_xlabel()
        'optimizer steps'
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
