"""What the rules in common use would say of a curve; `docs/explanation/lr-finder.md` says why they fail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mxtorch.lr_finder.curve import Floats, clean, running_median
from mxtorch.lr_finder.numbers import SWEEP


def well_known_rules(rates: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """The rates that `steepest`, `valley` and `minimum` suggest; empty for a curve too short to be read.

    `steepest` is where the loss falls fastest over the logarithm of the rate, `valley` the middle of the longest
    descent (fastai's rule of that name), `minimum` a tenth of the lowest point's rate. All are read off the running
    median.
    """
    rate, loss = clean(rates, losses)
    if len(loss) < SWEEP.fewest_steps:
        return {}
    smoothed = running_median(loss)
    lowest = int(np.argmin(smoothed))
    slopes = np.gradient(smoothed, np.log(rate))
    start, end = _longest_descent(smoothed)
    return {
        "steepest": float(rate[int(np.argmin(slopes[: max(lowest + 1, 2)]))]),
        "valley": float(rate[start + (end - start) // 2]),
        "minimum": float(max(rate[lowest] / 10, rate[0])),
    }


def _longest_descent(values: Floats) -> tuple[int, int]:
    """First and last index of the longest decreasing subsequence."""
    length = np.ones(len(values), dtype=np.int64)
    first = np.arange(len(values))
    for index in range(1, len(values)):
        above = np.flatnonzero(values[:index] > values[index])
        if len(above):
            best = above[int(np.argmax(length[above]))]
            length[index], first[index] = length[best] + 1, first[best]
    last = int(np.argmax(length))
    return int(first[last]), last
