"""The names of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch.utils.data import ConcatDataset


def class_names(
    given: Sequence[str] | None, data: Any, model: Any, count: int, *, or_two: bool = False
) -> tuple[str, ...]:
    """The names of `count` classes: the given names, else `.classes` of the data set, else `.classes` of the model.

    Args:
        given: Names, or None.
        data: A loader, or None. Its data set may have `.classes`, as `ImageFolder` has. The data set may be inside a
            `Subset` (of `random_split`), a `ConcatDataset` or another wrapper.
        model: The model, which may have `.classes`.
        count: The number of outputs of the model. `.classes` of another length are ignored.
        or_two: Whether a single output may have two names. It is then the probability of the second class.

    Returns:
        The names; an empty tuple if there are none.

    Raises:
        ValueError: The number of given names is wrong, or two classes have the same name.

    Example:
        >>> class_names(["cat", "dog"], None, None, 2)
        ('cat', 'dog')
    """
    counts = (count, 2) if or_two and count == 1 else (count,)
    if given is not None and len(given) not in counts:
        raise ValueError(f"classes: got {len(given)} names, but the model has {count} outputs; give one for each")
    for names in (given, _names_of(getattr(data, "dataset", None)), getattr(model, "classes", None)):
        if names is not None and len(names) in counts:
            return _without_duplicates(tuple(map(str, names)))
    return ()


def _names_of(dataset: Any) -> Any:
    """`.classes` of a data set, or of the data sets inside it if they are equal; otherwise None."""
    names = getattr(dataset, "classes", None)
    if names is not None or dataset is None:
        return names
    inner = dataset.datasets if isinstance(dataset, ConcatDataset) else [getattr(dataset, "dataset", None)]
    found = [_names_of(each) for each in inner]
    are_equal = all(each is not None and list(each) == list(found[0]) for each in found)
    return found[0] if found and are_equal else None


def _without_duplicates(names: tuple[str, ...]) -> tuple[str, ...]:
    name, times = next(iter(Counter(names).most_common(1)), ("", 0))
    if times > 1:
        raise ValueError(f"classes: got {name!r} for {times} classes; give each class a different name")
    return names
