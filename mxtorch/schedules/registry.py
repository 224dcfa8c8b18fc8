"""Schedules by name, and from what a file holds."""

from __future__ import annotations

import dataclasses
import re
import reprlib
from typing import Any, Literal, TypeAlias, TypeGuard

from mxtorch._checks import closest
from mxtorch.schedules.base import Schedule
from mxtorch.schedules.combination import Chained, Sequential
from mxtorch.schedules.constant import Constant
from mxtorch.schedules.cosine import CosineAnnealing, CosineRestarts, FlatCosine, WarmupCosine
from mxtorch.schedules.cyclic import ExpRange, OneCycle, Triangular, Triangular2
from mxtorch.schedules.decay import Exponential, MultiStep, Step
from mxtorch.schedules.polynomial import REX, InverseSquareRoot, Polynomial
from mxtorch.schedules.warmup import WarmupConstant, WarmupLinear, WarmupStableDecay

# What `get` and `Trainer.fit` take, besides a `Schedule`; the classes in CamelCase have the same names.
ScheduleName: TypeAlias = Literal[
    "constant",
    "triangular",
    "triangular2",
    "exp_range",
    "one_cycle",
    "cosine_annealing",
    "cosine_restarts",
    "warmup_cosine",
    "flat_cosine",
    "warmup_constant",
    "warmup_linear",
    "warmup_stable_decay",
    "inverse_square_root",
    "step",
    "multi_step",
    "exponential",
    "polynomial",
    "rex",
]
_BY_NAME: dict[str, type[Schedule]] = {
    "constant": Constant,
    "triangular": Triangular,
    "triangular2": Triangular2,
    "exp_range": ExpRange,
    "one_cycle": OneCycle,
    "cosine_annealing": CosineAnnealing,
    "cosine_restarts": CosineRestarts,
    "warmup_cosine": WarmupCosine,
    "flat_cosine": FlatCosine,
    "warmup_constant": WarmupConstant,
    "warmup_linear": WarmupLinear,
    "warmup_stable_decay": WarmupStableDecay,
    "inverse_square_root": InverseSquareRoot,
    "step": Step,
    "multi_step": MultiStep,
    "exponential": Exponential,
    "polynomial": Polynomial,
    "rex": REX,
}
# They have no name for `get`, since they are made of other schedules.
_COMBINATIONS: dict[str, type[Schedule]] = {"sequential": Sequential, "chained": Chained}
_DEEPEST = 8  # of schedules within schedules, in a file


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
    name = _snake_case(schedule)
    if name not in _BY_NAME:
        raise ValueError(f"schedule: got {schedule!r}{closest(name, _BY_NAME)}")
    return _BY_NAME[name]()


def name_of(schedule: object) -> str | None:
    """The name of a schedule's class, as in `ScheduleName`; None for one of the user's own, or a function.

    Example:
        >>> name_of(OneCycle())
        'one_cycle'
    """
    return next((name for name, kind in (_BY_NAME | _COMBINATIONS).items() if type(schedule) is kind), None)


def from_dict(content: dict[str, Any]) -> Schedule:
    """The schedule that `Schedule.to_dict` described.

    A description from before momentum was cycled gives a schedule that does not cycle it.

    Raises:
        ValueError: The name or a field is unknown, or a value is out of range.

    Example:
        >>> from_dict({"name": "Step", "step_size": 30, "gamma": 0.1})
        Step(step_size=30, gamma=0.1)
    """
    return _read(content, 0)


def is_savable(schedule: object) -> TypeGuard[Schedule]:
    """Whether `from_dict` can restore it. It can for the classes of this package, not for subclasses elsewhere.

    Example:
        >>> from mxtorch.schedules import OneCycle
        >>> is_savable(OneCycle()), is_savable(lambda step: 1.0)
        (True, False)
    """
    if type(schedule) in _COMBINATIONS.values():
        return all(is_savable(part) for part in schedule.schedules)  # type: ignore[attr-defined]
    return type(schedule) in _BY_NAME.values()


def _read(content: dict[str, Any], depth: int) -> Schedule:
    if not isinstance(content, dict):
        raise ValueError(f"schedules: got {reprlib.repr(content)}; give what to_dict gave of each")
    fields = dict(content)
    name = _snake_case(str(fields.pop("name", "")))
    kind = _COMBINATIONS.get(name) or type(get(name))
    known = [field.name for field in dataclasses.fields(kind)]
    parts: dict[str, Any] = {}
    if kind in _COMBINATIONS.values():
        given = fields.pop("schedules", ())
        if depth == _DEEPEST or not isinstance(given, (list, tuple)):
            raise ValueError(
                f"{kind.__name__}: schedules is {reprlib.repr(given)}; it must be a list, not deeply nested"
            )
        parts["schedules"] = [_read(part, depth + 1) for part in given]
    for name in fields:
        if name not in known:
            raise ValueError(f"{kind.__name__}: got a field {name!r}{closest(str(name), known)}")
        items = fields[name] if isinstance(fields[name], (list, tuple)) else [fields[name]]
        if not all(isinstance(item, (type(None), bool, int, float, str)) for item in items):
            raise ValueError(f"{kind.__name__}: {name} is {fields[name]!r}; it must be a number or a name")
    if set(known) - set(fields) == {"cycle_momentum", "base_momentum", "max_momentum"}:
        fields["cycle_momentum"] = False
    return kind(**parts, **fields)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
