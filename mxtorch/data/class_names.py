"""The names of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch.utils.data import ConcatDataset


def class_names(
    given: Sequence[str] | None, data: Any, model: Any, count: int, *, or_two: bool = False
) -> tuple[str, ...]:
    """The names of `count` classes: those that were given, else `.classes` of the data set, else of the model.

    Args:
        given: Names, or None.
        data: A loader, or None. Its data set may have `.classes`, as `ImageFolder` has, also within a `Subset` (of
            `random_split`), a `ConcatDataset` or another wrapper.
        model: It may have `.classes`.
        count: How many outputs the model has. Names of another number of classes are not taken.
        or_two: Whether two names will do for a single output, which is the probability of the second class.

    Returns:
        The names; empty where there are none.

    Raises:
        ValueError: Another number of names was given, or a name stands for two classes.
    """
    counts = (count, 2) if or_two and count == 1 else (count,)
    if given is not None and len(given) not in counts:
        raise ValueError(f"classes: got {len(given)} names, but the model has {count} outputs; give one for each")
    for names in (given, _names_of(getattr(data, "dataset", None)), getattr(model, "classes", None)):
        if names is not None and len(names) in counts:
            return _without_duplicates(tuple(map(str, names)))
    return ()


def _names_of(dataset: Any) -> Any:
    """`.classes` of a data set, or of the data sets in it if they agree."""
    names = getattr(dataset, "classes", None)
    if names is not None or dataset is None:
        return names
    inner = dataset.datasets if isinstance(dataset, ConcatDataset) else [getattr(dataset, "dataset", None)]
    found = [_names_of(each) for each in inner]
    return (
        found[0] if found and all(each is not None and list(each) == list(found[0] or ()) for each in found) else None
    )


def _without_duplicates(names: tuple[str, ...]) -> tuple[str, ...]:
    name, times = next(iter(Counter(names).most_common(1)), ("", 0))
    if times > 1:
        raise ValueError(f"classes: got {name!r} for {times} classes; give each class a name of its own")
    return names
