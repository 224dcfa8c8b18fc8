"""How many optimizer steps each epoch of a run has, known before the run begins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from mxtorch._checks import length

# Pairs of an epoch, counted from 1, and the batches to a step from there on; rising, from epoch 1.
Accumulations = Sequence[tuple[int, int]]


def accumulate_in(accumulations: Accumulations, epoch: int) -> int:
    """Batches to a step in an epoch of the run, counted from 0.

    Example:
        >>> [accumulate_in([(1, 8), (3, 2)], epoch) for epoch in range(4)]
        [8, 8, 2, 2]
    """
    return next(count for first, count in reversed(accumulations) if first <= epoch + 1)


class EpochLengths:
    """The optimizer steps of each epoch of a run, as far as they are known beforehand.

    An epoch of `most_steps` leaves its pass over the data open where batches are left; the next epoch takes these, and
    what it lacks from one further pass. So with batches to a step that change, an epoch's steps depend on those before
    it. After the last change all epochs soon have as many steps; only the epochs before that are held one by one.

    Args:
        data: The training data, whose length is asked for once.
        accumulations: Pairs of an epoch, counted from 1, and the batches to a step from there on; rising, from epoch 1.
        most_steps: Optimizer steps after which an epoch is cut; None where the data end it.

    Example:
        >>> lengths = EpochLengths(range(20), [(1, 2), (2, 8)], most_steps=5)
        >>> [lengths(epoch) for epoch in range(4)]  # the second one takes 10 batches that are left, then 20
        [5, 5, 3, 3]
        >>> lengths.total(4), lengths.epochs_of(14)
        (16, 4)
    """

    def __init__(self, data: Any, accumulations: Accumulations, most_steps: int | None = None) -> None:
        self._batches = length(data)
        self._most_steps = most_steps
        self._accumulations = accumulations
        self._first: list[int] = []  # the steps of the first epochs, until all later ones have as many
        self._later: int | None = most_steps
        if self._batches is not None:
            self._count(self._batches)

    def __call__(self, epoch: int) -> int | None:
        """The steps of an epoch, by its number from 0; None where the data have no length and no epoch is cut."""
        return self._first[epoch] if epoch < len(self._first) else self._later

    def total(self, epochs: int) -> int | None:
        """The steps of the first epochs together; None where they are not known."""
        if self._later is None:
            return None
        return sum(self._first[:epochs]) + max(epochs - len(self._first), 0) * self._later

    def shortest(self, epochs: int) -> int | None:
        """The steps of the shortest one of the first epochs; None where they are not known."""
        if self._later is None:
            return None
        return min([*self._first[:epochs], *([self._later] if epochs > len(self._first) else [])])

    def epochs_of(self, steps: int) -> int:
        """The epochs that have so many steps, the last one perhaps in part; each has a step at least."""
        reached = 0
        for epoch, count in enumerate(self._first):
            reached += max(count, 1)
            if reached >= steps:
                return epoch + 1
        return len(self._first) + math.ceil((steps - reached) / (self._later or 1))

    def batches_of(self, steps: int) -> int:
        """The batches that the first steps take, where each step takes as many as its epoch accumulates."""
        batches = 0
        for epoch, count in enumerate(self._first):
            taken = min(count, steps)
            batches, steps = batches + taken * accumulate_in(self._accumulations, epoch), steps - taken
        return batches + steps * accumulate_in(self._accumulations, len(self._first))

    def _count(self, batches: int) -> None:
        """Count the steps of the first epochs, from which on all have as many."""
        last_change = self._accumulations[-1][0] - 1
        left = 0  # batches of a pass that was cut
        for epoch in itertools.count():
            accumulate = accumulate_in(self._accumulations, epoch)
            of_left, of_pass = math.ceil(left / accumulate), math.ceil(batches / accumulate)
            most = self._most_steps
            if epoch >= last_change and (most is None or most <= of_pass or not left):
                self._later = of_pass if most is None else min(most, of_pass)
                return
            steps = of_left + of_pass if most is None else min(most, of_left + of_pass)
            self._first.append(steps)
            is_cut = steps == most
            if is_cut and steps <= of_left:
                left = max(left - steps * accumulate, 0)
            else:
                left = max(batches - (steps - of_left) * accumulate, 0) if is_cut else 0
