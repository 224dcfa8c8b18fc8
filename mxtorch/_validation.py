"""Checks of arguments that several modules make, and how their errors read."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any


def number(value: Any) -> float | None:
    """A Python, NumPy or 0-dimensional tensor number as a float; None where `value` is no real number.

    An integer beyond the range of floats is infinite.
    """
    if type(value) is float:  # the usual case, also in every step of a range test
        return value
    if not _is_scalar(value) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def whole_number(value: Any) -> int | None:
    """A Python, NumPy or 0-dimensional tensor integer as an int; None where `value` is none, as 2.0 is."""
    try:
        return operator.index(value) if _is_scalar(value) else None
    except TypeError:
        return None


def positive_rate(value: Any, argument: str) -> float:
    """`value` as a float.

    Args:
        value: A Python, NumPy or 0-dimensional tensor number.
        argument: What the error calls it.

    Raises:
        TypeError: It is not a number.
        ValueError: It is zero, negative, NaN or infinite.
    """
    rate = number(value)
    if rate is None:
        raise TypeError(f"{argument}: got {value!r}; give a finite positive number")
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{argument}: got {rate}; give a finite positive number")
    return rate


def closest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message: the names closest to `name`, and all there are."""
    names = list(choices)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ";"
    return f"{hint} There are: {', '.join(names)}"


def _is_scalar(value: Any) -> bool:
    """True for a single value that is not a truth value or text, of which Python would make numbers too."""
    is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
    return not is_bool and not isinstance(value, (str, bytes)) and tuple(getattr(value, "shape", ())) == ()
