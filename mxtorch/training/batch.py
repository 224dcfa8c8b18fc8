"""A batch: how many samples it holds, and the window of batches that one optimizer step takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor

from mxtorch._structure import tensors_in

Batch = Any


def batch_size(batch: Batch) -> int | None:
    """The length of the first dimension of the first tensor that has one; None where there is no such tensor."""
    if type(batch) in (tuple, list) and batch and isinstance(batch[0], Tensor) and batch[0].ndim:
        return batch[0].shape[0]  # the usual case, without the search
    return next((tensor.shape[0] for tensor in tensors_in(batch) if tensor.ndim > 0), None)


class Window(NamedTuple):
    """The batches over which one optimizer step accumulates gradients.

    Attributes:
        batches: As the loader gave them.
        sizes: The number of samples in each; 1 where it is not known.
        samples: The sum of the sizes.
    """

    batches: list[Batch]
    sizes: list[int]
    samples: int


def window_of(batches: list[Batch]) -> Window:
    """The window of these batches."""
    sizes = [batch_size(batch) or 1 for batch in batches]
    return Window(batches, sizes, sum(sizes))


def windows(data: Iterable[Batch], length: int) -> Iterator[Window]:
    """Windows of `length` batches each; the last one has what is left."""
    if length == 1:
        for batch in data:
            size = batch_size(batch) or 1
            yield Window([batch], [size], size)
        return
    iterator = iter(data)
    while group := list(islice(iterator, length)):
        yield window_of(group)
