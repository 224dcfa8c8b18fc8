"""Checks of arguments, and parts of the messages of their errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral
from typing import Any

from torch import nn


def positive_integer(name: str, value: Any) -> int:
    """The value of an argument that must be an integer of at least 1. NumPy's integers are accepted, a bool is not.

    Raises:
        ValueError: The value is something else. The message names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}: got {value!r}; give an integer of at least 1")
    return int(value)


def name_of(net: nn.Module) -> str:
    """The name by which a network of the zoo was built.

    Raises:
        ValueError: The zoo did not build this network.
    """
    name = getattr(net, "zoo_name", None)
    if not isinstance(name, str):
        raise ValueError(f"net: got a {type(net).__name__} that was not built by the zoo; build it with create(name)")
    return name


def did_you_mean(name: str, known: Iterable[str], most: int = 3) -> str:
    """A question with the known names that are closest to a wrong name; an empty string if none is close."""
    near = difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)
    return f"did you mean {' or '.join(repr(match) for match in near)}? " if near else ""
