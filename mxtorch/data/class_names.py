"""The names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def class_names(given: Sequence[str] | None, data: Any, model: Any, count: int) -> tuple[str, ...]:
    """The names of `count` classes: those that were given, else `.classes` of the data set, else of the model.

    Args:
        given: Names, or None.
        data: A loader, or None. Its data set may have `.classes`, as `ImageFolder` has.
        model: It may have `.classes`.
        count: How many outputs the model has. Names of another number of classes are not taken.

    Returns:
        The names; empty where there are none.

    Raises:
        ValueError: Another number of names was given.
    """
    if given is not None and len(given) != count:
        raise ValueError(f"classes: got {len(given)} names, but the model has {count} outputs; give one for each")
    found = [given, getattr(getattr(data, "dataset", None), "classes", None), getattr(model, "classes", None)]
    return next((tuple(map(str, names)) for names in found if names is not None and len(names) == count), ())
