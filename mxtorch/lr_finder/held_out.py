"""Samples that the search for a rate does not train on, to judge it by."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from mxtorch._checks import length
from mxtorch.checkpointing.snapshot import LoaderSnapshot
from mxtorch.training.data import Window, windows

# Of training data without validation data, at most one window in so many, and so many in all, are held out.
LARGEST_SHARE = 3
MOST_WINDOWS = 12


class HeldOutData:
    """Training windows, and batches that are not among them.

    With validation data the batches are samples from all over it: validation sets are often sorted by class.
    Otherwise they are the first windows of a pass over the training data, kept in memory; every further pass is
    begun with the random states of the first one, so that a shuffling loader deals the same windows, and these are
    left out again. Data that can't be repeated (an iterable with an order of its own) may bring held-out samples back
    in later passes.

    Args:
        train_data: What is trained on.
        val_data: Validation data, or None.
        accumulate: Batches to a window.
        wanted: How many batches to hold out, at most.
    """

    def __init__(self, train_data: Iterable[Any], val_data: Iterable[Any] | None, accumulate: int, wanted: int) -> None:
        self._data = train_data
        self._accumulate = accumulate
        self._order = LoaderSnapshot(train_data)
        self._left_out = 0
        if val_data is not None:
            order = LoaderSnapshot(val_data)
            order.set_workers_aside()
            try:
                self.batches = list(itertools.islice(_spread(val_data, wanted), wanted))
            finally:
                order.restore()
            return
        windows = self._first_windows(wanted)
        self._order.restore()
        self._left_out = len(windows)
        self.batches = [batch for window in windows for batch in window.batches][:wanted]

    def windows(self) -> Iterator[Window]:
        """A pass over what is trained on."""
        if self._left_out == 0:
            return windows(self._data, self._accumulate)
        now = LoaderSnapshot(self._data)
        self._order.restore()
        rest = iter(windows(self._data, self._accumulate))
        first = list(itertools.islice(rest, self._left_out + 1))[self._left_out :]
        # The order is dealt by now; what else is random goes on, so that passes differ in it.
        now.restore_global_generators()
        return itertools.chain(first, rest)

    def _first_windows(self, wanted: int) -> list[Window]:
        """The windows to hold out: the first ones, a third of a pass at most."""
        most = min(-(-wanted // self._accumulate), MOST_WINDOWS)
        batch_count = length(self._data)
        if batch_count is not None:
            affordable = min(most, -(-batch_count // self._accumulate) // LARGEST_SHARE)
            return list(itertools.islice(windows(self._data, self._accumulate), affordable))
        # Without a length, look whether there are as many windows as are needed beside them.
        dealt = iter(windows(self._data, self._accumulate))
        first = list(itertools.islice(dealt, most))
        count = len(first) + sum(1 for _ in itertools.islice(dealt, (LARGEST_SHARE - 1) * most))
        return first[: count // LARGEST_SHARE]


def _spread(val_data: Iterable[Any], wanted: int) -> Iterable[Any]:
    """The same data with so many batches, of samples from all over it, where the loader tells how to get them."""
    if not isinstance(val_data, DataLoader) or val_data.batch_size is None:
        return val_data
    if isinstance(val_data.dataset, IterableDataset):
        return val_data
    # The sampler tells which samples are for validation: the data set may hold those for training too.
    samples = list(itertools.islice(val_data.sampler, len(val_data.dataset)))  # type: ignore[arg-type]
    # One by lot, the same every time, from each of equal stretches: neither sorted nor periodic labels make a batch
    # one-sided.
    edges = torch.linspace(0, len(samples), min(wanted * val_data.batch_size, len(samples)) + 1, dtype=torch.float64)
    lots = torch.rand(len(edges) - 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    starts, ends = edges[:-1].long(), edges[1:].long()
    chosen = [samples[place] for place in (starts + (lots * (ends - starts)).long()).tolist()]
    batch_count = -(-len(chosen) // val_data.batch_size)
    dealt = [chosen[start::batch_count] for start in range(batch_count)]  # of nearly the same size
    return DataLoader(val_data.dataset, batch_sampler=dealt, collate_fn=val_data.collate_fn)
