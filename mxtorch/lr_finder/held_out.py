"""Samples that the search for a rate does not train on, to judge it by."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from mxtorch import batches, state

# Of training data without validation data, at most this share of a pass, and so many windows, are held out.
LARGEST_SHARE = 0.2
MOST_WINDOWS = 8


class HeldOutData:
    """Training windows, and batches that are not among them.

    With validation data the batches are the first ones of it. Otherwise they are the first windows of a pass over
    the training data, kept in memory; every further pass is begun with the random states of the first one, so that a
    shuffling loader deals the same windows, and these are left out again. Data that can't be repeated (an iterable
    with an order of its own) may bring held-out samples back in later passes.

    Args:
        train_data: What is trained on.
        val_data: Validation data, or None.
        accumulate: Batches to a window.
        wanted: How many batches to hold out, at most.
    """

    def __init__(self, train_data: Iterable[Any], val_data: Iterable[Any] | None, accumulate: int, wanted: int) -> None:
        self._data = train_data
        self._accumulate = accumulate
        self._order = state.LoaderState(train_data)
        self._left_out = 0
        if val_data is not None:
            order = state.LoaderState(val_data)
            self.batches = list(itertools.islice(val_data, wanted))
            order.restore()
            return
        windows = list(itertools.islice(batches.windows(train_data, accumulate), self._affordable(wanted)))
        self._order.restore()
        self._left_out = len(windows)
        self.batches = [batch for window in windows for batch in window.batches][:wanted]

    def windows(self) -> Iterator[batches.Window]:
        """A pass over what is trained on."""
        now = state.LoaderState(self._data)
        self._order.restore()
        windows = iter(batches.windows(self._data, self._accumulate))
        first = list(itertools.islice(windows, self._left_out + 1))[self._left_out :]
        # The order is dealt by now; what else is random goes on, so that passes differ in it.
        now.restore_global_generators()
        return itertools.chain(first, windows)

    def _affordable(self, wanted: int) -> int:
        try:
            count = -(-len(self._data) // self._accumulate)  # type: ignore[arg-type]
        except TypeError:
            return min(wanted, MOST_WINDOWS)  # without a length, taken to be long
        windows_wanted = -(-wanted // self._accumulate)
        return max(min(windows_wanted, MOST_WINDOWS, int(LARGEST_SHARE * count)), 1 if count > 2 else 0)
