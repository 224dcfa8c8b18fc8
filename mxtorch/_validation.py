"""Checks of arguments that several modules make, and how their errors read."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


def positive_rate(value: Any, argument: str) -> float:
    """`value` as a float.

    Raises:
        TypeError: It is not a number.
        ValueError: It is zero, negative, NaN or infinite.
    """
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{argument}: got {value!r}; give a finite positive number")
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{argument}: got {number}; give a finite positive number")
    return number


def closest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message: the names closest to `name`, and all there are."""
    names = list(choices)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ";"
    return f"{hint} There are: {', '.join(names)}"
