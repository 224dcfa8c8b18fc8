"""Held-out samples: a search does not train on them and judges the rates by them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from mxtorch._checks import length
from mxtorch._structure import concatenate, map_tensors, tensors_in
from mxtorch.checkpointing.snapshot import LoaderSnapshot
from mxtorch.training.data import Window, windows
from mxtorch.training.limits import first_set, validation_sets
from mxtorch.training.supervised import batch_size

# Without validation data, at most one training window in LARGEST_SHARE is held out, and MOST_WINDOWS in all.
LARGEST_SHARE = 3
MOST_WINDOWS = 12
# If samples can't be read by their index, MOST_BATCHES_MIXED batches from all over a pass are mixed, and at most
# MOST_BATCHES_READ are read for this. Reading costs time, keeping costs memory.
MOST_BATCHES_MIXED = 64
MOST_BATCHES_READ = 1024


def judged_set(val_data: Any) -> Iterable[Any] | None:
    """The validation set that samples are held out from: of several by name the first one.

    Raises:
        TypeError: A set can't be iterated over, or a name is no text.
        ValueError: There is no set, a set is known to be empty or can be read only once, or a name is wrong.

    Example:
        >>> judged_set({"clean": [1], "noisy": [2]}), judged_set([3]), judged_set(None)
        ([1], [3], None)
    """
    validation_sets(val_data, passes=2)
    chosen: Iterable[Any] | None = first_set(val_data)
    return chosen


class HeldOutData:
    """Training windows, and held-out batches that are not among them.

    With validation data, the batches are mixed samples from all over it. Validation sets are often sorted by class, and
    a batch of one class says nothing, least of all with batch normalisation. Without validation data, the batches are
    the first windows of a pass over the training data and are kept in memory. Every later pass begins with the random
    states of the first one, so that a shuffling loader gives the same windows, which are left out again. Data that
    can't be repeated (an iterable with an order of its own) may return held-out samples in later passes.

    Args:
        train_data: The training data.
        val_data: The validation data, or None.
        accumulate: The number of batches in a window, or a function that returns it.
        samples: The approximate number of samples to hold out.
        most_batches: The largest number of held-out batches.
        needs_mixed: Whether batches of one class mislead, as they do with batch normalisation. If the batches of
            `val_data` can't be mixed, training data are held out instead.

    Attributes:
        batches: The held-out batches.
        note: A sentence on what could not be done as usual; empty if there is nothing to say.
    """

    def __init__(
        self,
        train_data: Iterable[Any],
        val_data: Iterable[Any] | None,
        accumulate: int | Callable[[], int],
        samples: int,
        most_batches: int,
        *,
        needs_mixed: bool = False,
    ) -> None:
        self.note = ""
        self._data = train_data
        self._accumulate = accumulate if callable(accumulate) else lambda: accumulate
        self._order = LoaderSnapshot(train_data)
        self._left_out = 0
        if val_data is not None:
            order = LoaderSnapshot(val_data)
            order.set_workers_aside()
            try:
                batches = self._from_validation(val_data, samples, most_batches, needs_mixed)
            finally:
                order.restore()
            if batches is not None:
                self.batches = batches
                return
        first = self._first_windows(samples, most_batches)
        self._order.restore()
        self._left_out = len(first)
        self.batches = [batch for window in first for batch in window.batches][:most_batches]
        if not self.batches:
            self.note = "the training data are too few to hold samples out; give val_data"

    def windows(self) -> Iterator[Window]:
        """Return a pass over the training windows."""
        if self._left_out == 0:
            return windows(self._data, self._accumulate())
        now = LoaderSnapshot(self._data)
        self._order.restore()
        rest = iter(windows(self._data, self._accumulate()))
        first = list(itertools.islice(rest, self._left_out + 1))[self._left_out :]
        # The order of this pass is fixed now. All other random numbers continue, so that they differ between passes.
        now.restore_global_generators()
        return itertools.chain(first, rest)

    def _from_validation(
        self, val_data: Iterable[Any], samples: int, most_batches: int, needs_mixed: bool
    ) -> list[Any] | None:
        """Return batches of samples from all over the validation data; None if they can't be used."""
        loader = _spread_loader(val_data, samples, most_batches)
        if loader is not None and len(loader):
            return list(loader)
        batches, read_all = _from_all_over(val_data)
        if not batches:
            self.note = "val_data yields no batches, so training data are held out"
            return None
        if not read_all:
            self.note = f"only the first {MOST_BATCHES_READ} batches of val_data were looked at"
        mixed = _mixed(batches, samples, most_batches)
        if mixed is not None:
            return mixed
        if needs_mixed:
            self.note = (
                "the batches of val_data can't be mixed, and batches of one class mislead batch normalisation, so "
                "training data are held out"
            )
            return None
        self.note = "the batches of val_data can't be mixed, so whole ones from all over are judged"
        return [batches[place] for place in _one_of_each_stretch(len(batches), min(most_batches, len(batches)))]

    def _first_windows(self, samples: int, most_batches: int) -> list[Window]:
        """Return the windows to hold out: the first ones, at most a third of a pass."""
        dealt = iter(windows(self._data, self._accumulate()))
        first = next(dealt, None)
        if first is None:
            return []
        wanted = min(-(-samples // max(first.samples, 1)), -(-most_batches // self._accumulate()), MOST_WINDOWS)
        batch_count = length(self._data)
        if batch_count is not None:
            affordable = min(wanted, -(-batch_count // self._accumulate()) // LARGEST_SHARE)
            return list(itertools.islice(itertools.chain([first], dealt), affordable))
        # Without a length, look whether enough windows for training are left.
        held = [first, *itertools.islice(dealt, wanted - 1)]
        count = len(held) + sum(1 for _ in itertools.islice(dealt, (LARGEST_SHARE - 1) * wanted))
        return held[: count // LARGEST_SHARE]


def _spread_loader(val_data: Iterable[Any], samples: int, most_batches: int) -> DataLoader[Any] | None:
    """Return a loader of mixed samples from all over the data; None if samples can't be read by their index."""
    if not isinstance(val_data, DataLoader) or isinstance(val_data.dataset, IterableDataset):
        return None
    # The sampler says which samples are for validation. The data set may also hold samples for training.
    count = len(val_data.dataset)  # type: ignore[arg-type]
    if val_data.batch_size is not None:
        size, there = val_data.batch_size, list(itertools.islice(val_data.sampler, count))
    elif val_data.batch_sampler is not None:
        groups = [list(group) for group in itertools.islice(val_data.batch_sampler, count)]
        size, there = max(map(len, groups), default=1), [index for group in groups for index in group]
    else:
        return None  # the data set gives whole batches
    wanted = min(samples, most_batches * size, len(there))
    chosen = [there[place] for place in _one_of_each_stretch(len(there), wanted)]
    batch_count = -(-len(chosen) // size)
    dealt = [chosen[start::batch_count] for start in range(batch_count)]  # of nearly the same size
    return DataLoader(val_data.dataset, batch_sampler=dealt, collate_fn=val_data.collate_fn)


def _from_all_over(data: Iterable[Any]) -> tuple[list[Any], bool]:
    """Choose batches of a pass at random, the same every time; also return whether the pass was read to its end.

    The method is reservoir sampling (Vitter 1985, algorithm R), because the data may have no length.
    """
    chance = random.Random(0)
    kept: list[Any] = []
    read = 0
    for index, batch in enumerate(itertools.islice(data, MOST_BATCHES_READ)):
        read = index + 1
        if len(kept) < MOST_BATCHES_MIXED:
            kept.append(batch)
        elif (place := chance.randrange(read)) < MOST_BATCHES_MIXED:
            kept[place] = batch
    return kept, read < MOST_BATCHES_READ or length(data) == MOST_BATCHES_READ


def _one_of_each_stretch(count: int, wanted: int) -> list[int]:
    """Choose one index at random, the same every time, from each of `wanted` equal stretches.

    Neither sorted nor periodic labels make such a choice one-sided.
    """
    edges = torch.linspace(0, count, wanted + 1, dtype=torch.float64)
    lots = torch.rand(wanted, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    starts, ends = edges[:-1].long(), edges[1:].long()
    return [int(place) for place in (starts + (lots * (ends - starts)).long()).tolist()]


def _mixed(batches: Sequence[Any], samples: int, most_batches: int) -> list[Any] | None:
    """Mix the samples of batches into new batches; None if the samples can't be separated.

    Samples can be separated if every tensor has them along its first dimension.
    """
    sizes = [batch_size(batch) for batch in batches]
    if len(batches) < 2:
        return list(batches)
    for batch, size in zip(batches, sizes, strict=True):
        if size is None or any(tensor.ndim == 0 or len(tensor) != size for tensor in tensors_in(batch)):
            return None
    try:
        joined = concatenate(batches)
    except (RuntimeError, ValueError, KeyError):  # shapes or structures differ: padded to the longest of a batch
        return None
    total = sum(size or 0 for size in sizes)
    if any(len(tensor) != total for tensor in tensors_in(joined)) or _has_other_leaves(batches[0]):
        return None
    chosen = torch.tensor(_one_of_each_stretch(total, min(samples, total)))
    usual = max(size or 1 for size in sizes)
    count = min(max(-(-len(chosen) // usual), 1), most_batches)

    def part(start: int) -> Any:
        places = chosen[start::count]
        return map_tensors(lambda tensor: tensor[places.to(tensor.device)], joined)

    return [part(start) for start in range(count)]


def _has_other_leaves(batch: Any) -> bool:
    """Whether something else than tensors has an entry for each sample, such as names of files."""
    return any(not isinstance(leaf, Tensor) for leaf in tree_leaves(batch))
